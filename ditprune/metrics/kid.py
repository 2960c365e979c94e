"""The kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401, Sec. 4)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ditprune.metrics.base import FeatureMetric
from ditprune.metrics.features import in_full_precision
from ditprune.metrics.kernel import kernel_mean, kernel_sum_of_pairs
from ditprune.metrics.products import products

SUBSET_SIZE = 1000


class KernelInceptionDistance(FeatureMetric):
    """KID: squared MMD of the pool features under a cubic kernel, without bias at any count.

    By default of all images at once: the same expectation as the mean over the published subsets,
    so that the numbers compare, with less noise, no seed, and no least number of images. Squared
    MMDs without bias are negative now and then where the sets are alike.
    """

    higher_is_better = False

    def __init__(self, num_subsets: int = 0, seed: int = 2020, **kwargs: Any) -> None:
        """Choose all images at once, or the published protocol: `num_subsets=100` of 1000 images.

        Subsets of the default seed are torch-fidelity's.
        """
        super().__init__(**kwargs)
        if num_subsets < 0:
            raise ValueError(f"num_subsets is their number, or 0 for none; got {num_subsets}")
        self.num_subsets = num_subsets
        self.fewest = SUBSET_SIZE if num_subsets else 2
        self.seed = seed

    @property
    def protocol(self) -> str:
        """Return `kid/degree3/`, and the subsets with their seed or `all` images."""
        subsets = f"{self.num_subsets}x{SUBSET_SIZE}/seed{self.seed}"
        return f"kid/degree3/{subsets if self.num_subsets else 'all'}"

    def compute(self) -> dict[str, float]:
        """Return `kid`; of subsets, the mean, and `kid_std`, their population deviation."""
        generated, reference = self.pools()
        if not self.num_subsets:
            return {"kid": kernel_distance(generated, reference).item()}
        mean, deviation = subset_distances(generated, reference, self.num_subsets, seed=self.seed)
        return {"kid": mean, "kid_std": deviation}


def subset_distances(
    generated: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    num_subsets: int = 100,
    subset_size: int = SUBSET_SIZE,
    seed: int = 2020,
) -> tuple[float, float]:
    """Return mean and population deviation of KID over subsets drawn without replacement.

    The deviation is that of so few images, and not of the mean.

    Raises:
        ValueError: if a set has fewer images than a subset.
    """
    if min(len(generated), len(reference)) < subset_size:
        raise ValueError(
            f"KID's subsets have {subset_size} images; got {len(generated)} generated and "
            f"{len(reference)} of reference. Give more, or num_subsets=0 for KID of all at once."
        )
    pairs = subsets(len(generated), len(reference), num_subsets, subset_size, seed)
    values = torch.stack([kernel_distance(generated[i], reference[j]) for i, j in pairs])
    return values.mean().item(), values.std(correction=0).item()


def subsets(
    num_generated: int, num_reference: int, num_subsets: int, size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the positions in both sets, in the order in which torch-fidelity draws them."""
    draw = np.random.RandomState(seed)
    for _ in range(num_subsets):
        first = draw.choice(num_generated, size, replace=False)
        yield (
            torch.from_numpy(first),
            torch.from_numpy(draw.choice(num_reference, size, replace=False)),
        )


def kernel_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float64[Tensor, ""]:
    """Return the unbiased estimate of MMD^2: no image is paired with itself.

    Raises:
        ValueError: if a set has fewer than two images, and so no pair.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"KID needs two images in each set; got {len(x)} and {len(y)}")
    with in_full_precision(x.device):
        center = y.mean(0)
        own, other = about(x, center), about(y, center)
        across = kernel_mean(cubic_kernel, own, other)
        return mean_of_pairs(own) + mean_of_pairs(other) - 2 * across


@dataclass(frozen=True)
class Deviations:
    """Features about a point near them.

    With x = c + a and y = c + b, x . y = a . b + (c . a + |c|^2 / 2) + (c . b + |c|^2 / 2). What
    float32 rounds off a . b is little, for deviations are small, and differs from pair to pair,
    so that most of it averages out; the rest is one number of each image. With features like
    Inception's KID is off by about 1e-11.
    """

    rows: Float[Tensor, "n d"]
    offsets: Float64[Tensor, " n"]
    """(c . a + |c|^2 / 2) / d."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: slice, /) -> "Deviations":
        return replace(self, rows=self.rows[some], offsets=self.offsets[some])


def about(x: Float[Tensor, "n d"], center: Float[Tensor, " d"]) -> Deviations:
    """Return features about a point, in their own precision."""
    rows = x - center
    offsets = (rows @ center).double() + center.double().square().sum() / 2
    return Deviations(rows, offsets / len(center))


def mean_of_pairs(x: Deviations) -> Float64[Tensor, ""]:
    """Return the mean of k(x_i, x_j) over all i other than j."""
    return kernel_sum_of_pairs(cubic_kernel, x) / (len(x) * (len(x) - 1))


def cubic_kernel(x: Deviations, y: Deviations) -> Float64[Tensor, "n m"]:
    """Return k(x, y) = (x . y / d + 1)^3."""
    scaled = products(x.rows, y.rows).double().div_(x.rows.shape[1])
    base = scaled.add_(x.offsets[:, None]).add_(y.offsets + 1)
    return base.square().mul_(base)  # several times as fast as a power
