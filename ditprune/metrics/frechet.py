"""The Frechet distance between two sets of features (Heusel et al. 2017, arXiv 1706.08500)."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ditprune.metrics.base import FeatureMetric

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
        ValueError: if a set has fewer than two images, and so no covariance.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"the Frechet distance needs two images in each set; got {len(x)} and {len(y)}"
        )
    x, y = x.double(), y.double()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    x, y = x - x.mean(0), y - y.mean(0)
    spread = mean_square(x) + mean_square(y) - 2 * trace_of_root(x, y)
    # Zero from below is rounding: the Gaussians' distance is never negative.
    return (shift + spread).clamp(min=0)


def mean_square(deviations: Float64[Tensor, "n d"]) -> Float64[Tensor, ""]:
    """Return the trace of the covariance."""
    return deviations.square().sum() / (len(deviations) - 1)


def trace_of_root(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, ""]:
    """Return Tr (S_x S_y)^1/2 of the covariances, given deviations from the means.

    It is the nuclear norm of X Y^T, since both have the same non-zero spectrum; exact where
    images are too few for covariances of full rank, and too large a matrix where they are many.
    """
    if min(len(x), len(y)) <= x.shape[1]:
        norm: Tensor = torch.linalg.matrix_norm(x @ y.T, ord="nuc")
        return norm / ((len(x) - 1) * (len(y) - 1)) ** 0.5
    return trace_of_covariance_root(covariance(x), covariance(y))


def covariance(deviations: Float64[Tensor, "n d"]) -> Float64[Tensor, "d d"]:
    """Return the covariance; it is symmetric, and so only half of it is multiplied out."""
    products = deviations.new_empty(deviations.shape[1], deviations.shape[1])
    for start in range(0, len(products), STRIP):
        stop = start + STRIP
        strip = deviations[:, start:stop].T @ deviations[:, start:]
        products[start:stop, start:], products[start:, start:stop] = strip, strip.T
    return products / (len(deviations) - 1)


def trace_of_covariance_root(
    x: Float64[Tensor, "d d"], y: Float64[Tensor, "d d"]
) -> Float64[Tensor, ""]:
    """Return Tr (S_x S_y)^1/2 = Tr (F^T S_y F)^1/2 with S_x = F F^T.

    That matrix is symmetric, so that its eigenvalues are real, unlike those that rounding leaves
    the product S_x S_y; and they are found several times as fast.
    """
    factor = factor_of(x)
    squares: Tensor = torch.linalg.eigvalsh(factor.T @ y @ factor).clamp(min=0)
    return squares.sqrt().sum()


def factor_of(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """Return F such that F F^T is the covariance."""
    lower, singular = torch.linalg.cholesky_ex(covariance)
    if not singular:
        return lower
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()
