"""The Frechet distance between two sets of features (Heusel et al. 2017, arXiv 1706.08500)."""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ditprune.metrics.base import FeatureMetric


class FrechetDistance(FeatureMetric):
    """FID: the distance of the two sets' Gaussians in the extractor's pool features."""

    higher_is_better = False

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
    x, y = scaled_deviations(x), scaled_deviations(y)
    spread = x.square().sum() + y.square().sum() - 2 * trace_of_root(x, y)
    # Zero from below is rounding: the Gaussians' distance is never negative.
    return (shift + spread).clamp(min=0)


def scaled_deviations(x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    """Return X such that X^T X is the covariance."""
    return (x - x.mean(0)) / math.sqrt(len(x) - 1)


def trace_of_root(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, ""]:
    """Return Tr (X^T X Y^T Y)^1/2.

    It is the nuclear norm of X Y^T, since both have the same non-zero spectrum; exact where
    images are too few for covariances of full rank, and too large a matrix where they are many.
    """
    if min(len(x), len(y)) <= x.shape[1]:
        norm: Tensor = torch.linalg.matrix_norm(x @ y.T, ord="nuc")
        return norm
    return trace_of_covariance_root(x.T @ x, y.T @ y)


def trace_of_covariance_root(
    x: Float64[Tensor, "d d"], y: Float64[Tensor, "d d"]
) -> Float64[Tensor, ""]:
    """Return Tr (S_x S_y)^1/2 = Tr (R S_y R)^1/2 with R = S_x^1/2, a symmetric matrix.

    Its eigenvalues are real, unlike those that rounding leaves the product S_x S_y.
    """
    values, vectors = torch.linalg.eigh(x)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    squares: Tensor = torch.linalg.eigvalsh(root @ y @ root).clamp(min=0)
    return squares.sqrt().sum()
