"""What sets of images are worth, beside real ones."""

import logging
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from ditprune.catalogue import Catalogue
from ditprune.distributed import all_cores
from ditprune.joined import mapped
from ditprune.metrics import (
    ADMInceptionScore,
    FeatureExtractor,
    FeatureMetric,
    Features,
    FIDInfinity,
    FrechetDistance,
    InceptionScore,
    SpatialFrechetDistance,
    frechet_distance,
)
from ditprune.samples import Samples

log = logging.getLogger(__name__)

Measured = dict[str, list[float]]
"""A value of each metric for each seed."""

MANY_IMAGES = 10_000
"""From here on, published Frechet distances."""
BIASED = (FrechetDistance, SpatialFrechetDistance)
"""Distances of means and covariances: few images make them larger."""
OF_STATISTICS = (*BIASED, FIDInfinity)
"""Metrics that want no more of real images than means and covariances."""
ALONE = (InceptionScore, ADMInceptionScore)
"""Metrics that compare with no real images."""


class Real(NamedTuple):
    """What generated images are compared with."""

    features: Features
    """Of real images; of none, where there are only statistics."""
    statistics: Features | None = None
    """Of more images, whose means and covariances somebody published."""

    def beside(self, metric: FeatureMetric) -> Features:
        """Return what a metric compares with."""
        if self.statistics is not None and isinstance(metric, OF_STATISTICS):
            return self.statistics
        return self.features


def demand_statistics_do(statistics: Path, metrics: Iterable[FeatureMetric]) -> None:
    """Raise a ValueError if some metrics need real images, and there are only statistics."""
    needy = [type(m).__name__ for m in metrics if not isinstance(m, (*OF_STATISTICS, *ALONE))]
    if needy:
        raise ValueError(
            f"{statistics} holds statistics and no images, which {', '.join(needy)} compare with: "
            "give the images, or leave them out"
        )


def demand_enough_images(metrics: Iterable[FeatureMetric], num_images: int) -> None:
    """Raise a ValueError if some metrics take more images than will be drawn."""
    for metric in metrics:
        if num_images < metric.fewest:
            raise ValueError(
                f"{type(metric).__name__} ({metric.protocol}) takes {metric.fewest} images at "
                f"least, and num_samples is {num_images}"
            )


def demand_features(
    metrics: Iterable[FeatureMetric],
    extractor: FeatureExtractor,
    images: UInt8[Tensor, "n c h w"],
) -> None:
    """Raise a ValueError if the network cannot see such images, or gives not what metrics take."""
    seen = extractor.extract(images)
    for metric in metrics:
        metric.clone().update(seen, seen)


def warn_of_few_images(metrics: Iterable[FeatureMetric], num_images: int) -> None:
    """Warn if a distance is measured on so few images that its bias counts."""
    if num_images < MANY_IMAGES and any(isinstance(metric, BIASED) for metric in metrics):
        log.warning(
            "FID is measured on %d images: its bias goes as 1/N, so that numbers of different N "
            "do not compare; those published take %d or more",
            num_images,
            MANY_IMAGES,
        )


def measure(samples: Iterable[Features], real: Real, metrics: Sequence[FeatureMetric]) -> Measured:
    """Compare the features of each seed with real images, in this process alone."""
    measured: Measured = {}
    for drawn in samples:
        for metric in metrics:
            for name, value in compute(metric, drawn, real.beside(metric)).items():
                measured.setdefault(name, []).append(value)
    return measured


def compute(original: FeatureMetric, drawn: Features, real: Features) -> dict[str, float]:
    """Return what a metric makes of two sets, on all cores."""
    metric = original.clone()
    metric.distributed_available_fn = lambda: False  # ranks hold the same, no shares
    metric.reset()
    metric.update(drawn, real)
    with all_cores():
        return {name: float(value) for name, value in metric.compute().items()}


def measure_sets(
    samples: Iterable[Samples],
    real: Real,
    metrics: Sequence[FeatureMetric],
    catalogue: Catalogue | None = None,
) -> Measured:
    """Compare the images of each seed with real ones, in all and category by category."""
    measured: Measured = {}
    for drawn in samples:
        features = drawn.features  # of one seed at a time: they are large
        found = measure([features], real, metrics)
        if catalogue is not None:
            found |= measure_by_category(features, real.features, catalogue)
        for name, values in found.items():
            measured.setdefault(name, []).extend(values)
    return measured


def measure_by_category(drawn: Features, real: Features, catalogue: Catalogue) -> Measured:
    """Return the FID of each of several categories, as `fid/animals`, where it has two images."""
    theirs, ours = catalogue.members(), catalogue.members(len(drawn.pool))
    measured: Measured = {}
    for name, places in theirs.items() if len(theirs) > 1 else ():
        if len(places) > 1 and len(ours.get(name, ())) > 1:
            with all_cores():
                distance = frechet_distance(drawn.pool[ours[name]], real.pool[places])
            measured[f"fid/{name}"] = [distance.item()]
    return measured


def measure_values(samples: Iterable[Samples]) -> Measured:
    """Return the mean over the images of each seed, of every number that an image has for itself.

    It is rounded once, so that no order of summation changes it.
    """
    measured: Measured = {}
    for drawn in samples:
        for name, values in drawn.values().items():
            measured.setdefault(name, []).append(statistics.fmean(values.tolist()))
    return measured


def extract_all(
    batches: Iterable[UInt8[Tensor, "b c h w"]], extractor: FeatureExtractor
) -> Features:
    """Return the features of all images of a loader."""
    return Features(**mapped(extractor.extract(images).tensors() for images in batches))
