"""How far a mean over images can be trusted: the bootstrap over prompts (Efron 1979)."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
BLOCK = 2**22
"""Numbers drawn at once: 50,000 images would take 4 GB of them otherwise."""


class Summary(NamedTuple):
    """What a number of every image comes to."""

    mean: float
    low: float
    """From here to `high` the mean may be, with 95 % confidence, for other prompts of the kind."""
    high: float
    median: float
    """Of the typical image: a few can lead the mean."""


def summarize(
    values: Float64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"] | None = None
) -> Summary:
    """Return mean, interval and median of the values of images.

    Args:
        values: one of each image; for two models, their differences, image by image.
        groups: the prompt of each image. Images of one prompt are no independent witnesses, and
            drawn together. None is a prompt of its own for each.
    """
    low, high = mean_interval(values, groups)
    return Summary(float(values.mean()), low, high, float(np.median(values)))


def mean_interval(
    values: Float64[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of the mean; values that are not finite have none: nan."""
    if not np.isfinite(values).all():
        return float("nan"), float("nan")
    means = np.concatenate(list(resampled_means(values, groups, num_resamples, seed)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def resampled_means(
    values: Float64[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"] | None,
    num_resamples: int,
    seed: int,
) -> Iterator[Float64[np.ndarray, " r"]]:
    """Yield the means over groups drawn with replacement, as many as there are; block by block."""
    index = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums, counts = np.bincount(index, values), np.bincount(index)
    generator = np.random.default_rng(seed)
    num_rows = max(1, BLOCK // len(sums))
    for start in range(0, num_resamples, num_rows):
        shape = min(num_rows, num_resamples - start), len(sums)
        drawn = generator.integers(0, len(sums), shape)
        yield sums[drawn].sum(1) / counts[drawn].sum(1)
