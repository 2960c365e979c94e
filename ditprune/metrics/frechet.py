"""The Frechet distance between two sets of features (Heusel et al. 2017, arXiv 1706.08500)."""

from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ditprune.metrics.base import BLOCK_SIZE, FeatureMetric

STRIP = 256
"""Columns of a covariance that are multiplied out at once."""


class FrechetDistance(FeatureMetric):
    """FID: the distance of the two sets' Gaussians in the extractor's pool features."""

    higher_is_better = False

    @property
    def protocol(self) -> str:
        """Return `fid`."""
        return "fid"

    def compute(self) -> dict[str, float]:
        """Return `fid`."""
        return {"fid": frechet_distance(*self.pools()).item()}


def frechet_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float64[Tensor, ""]:
    """Return |mu_x - mu_y|^2 + Tr(S_x + S_y - 2 (S_x S_y)^1/2) (Heusel et al. 2017, Eq. 6).

    Covariances are the unbiased ones (n - 1), as in all published numbers.

    Raises:
        ValueError: if a set has fewer than two images, and so no covariance, or some whose
            features are not finite.
    """
    return distance(Spread(x), Spread(y))


def distance(own: "Spread", other: "Spread") -> Float64[Tensor, ""]:
    """Return the Frechet distance of two sets."""
    counts = len(own.features), len(other.features)
    if min(counts) < 2:
        raise ValueError(
            f"the Frechet distance needs two images in each set; got {counts[0]} and {counts[1]}"
        )
    if not (own.mean + other.mean).isfinite().all():
        raise ValueError("the Frechet distance needs finite features; some are not")
    shift = (own.mean - other.mean).square().sum()
    spread = own.variance() + other.variance() - 2 * trace_of_root(own, other)
    # Zero from below is rounding: the Gaussians' distance is never negative.
    return (shift + spread).clamp(min=0)


def mean_of(features: Float[Tensor, "n d"]) -> Float64[Tensor, " d"]:
    """Return the mean, in float64 and a block of images at a time."""
    sums = [block.double().sum(0) for block in features.split(BLOCK_SIZE)]
    return torch.stack(sums).sum(0) / len(features)


class Spread:
    """How features lie about their mean, in float64 and a block of images at a time."""

    def __init__(self, features: Float[Tensor, "n d"]) -> None:
        """Find the mean."""
        self.features = features
        self.mean = mean_of(features)

    @property
    def is_flat(self) -> bool:
        """Whether there are too few images for a covariance of full rank."""
        return len(self.features) <= len(self.mean)

    def deviations(self) -> Iterator[Float64[Tensor, "b d"]]:
        """Yield what the features are off the mean, block by block."""
        return (block.double() - self.mean for block in self.features.split(BLOCK_SIZE))

    def variance(self) -> Float64[Tensor, ""]:
        """Return the trace of the covariance."""
        if not self.is_flat:
            return self.covariance.trace()
        squares = torch.stack([block.square().sum() for block in self.deviations()])
        return squares.sum() / (len(self.features) - 1)

    @cached_property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased covariance; only half of it is multiplied out, for it is symmetric."""
        products = self.mean.new_zeros(len(self.mean), len(self.mean))
        for block in self.deviations():
            for start in range(0, len(products), STRIP):
                strip = slice(start, start + STRIP)
                products[strip, start:].addmm_(block[:, strip].T, block[:, start:])
        return (products.triu() + products.triu(1).T) / (len(self.features) - 1)

    @cached_property
    def root(self) -> Float64[Tensor, "k d"]:
        """R such that R^T R is the covariance: the deviations, where there are few images."""
        if self.is_flat:
            return torch.cat(list(self.deviations())) / (len(self.features) - 1) ** 0.5
        return root_of(self.covariance)


def root_of(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "k d"]:
    """Return R such that R^T R is the covariance, with as many rows as that has rank.

    What rounding leaves of an eigenvalue that is none has a root that is no rounding.
    """
    smallest = len(covariance) * torch.finfo(torch.float64).eps
    upper, failed = torch.linalg.cholesky_ex(covariance, upper=True)
    pivots = upper.diagonal().square()
    if not failed and pivots.min() > smallest * pivots.max():
        return upper
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > smallest * values.max()
    return (vectors[:, kept] * values[kept].sqrt()).T


def trace_of_root(x: Spread, y: Spread) -> Float64[Tensor, ""]:
    """Return Tr (S_x S_y)^1/2 of the covariances.

    With S = R^T R it is the nuclear norm of R_x R_y^T, since both have the same non-zero spectrum:
    so it is found where a covariance is singular. Where none is, it is Tr (R_x S_y R_x^T)^1/2,
    which takes less time; that matrix is symmetric, so that its eigenvalues are real, unlike those
    that rounding leaves the product S_x S_y.
    """
    if x.is_flat or y.is_flat or min(len(x.root), len(y.root)) < len(x.mean):
        norm: Tensor = torch.linalg.matrix_norm(x.root @ y.root.T, ord="nuc")
        return norm
    squares: Tensor = torch.linalg.eigvalsh(x.root @ y.covariance @ x.root.T).clamp(min=0)
    return squares.sqrt().sum()
