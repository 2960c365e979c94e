"""CLIP's maximum mean discrepancy (Jayasumana et al. 2024, arXiv 2401.09603)."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ditprune.metrics.base import FeatureMetric
from ditprune.metrics.kernel import kernel_mean, kernel_sum_of_pairs, squared_distances

SIGMA = 10.0
SCALE = 1000.0


class CMMD(FeatureMetric):
    """Squared MMD of CLIP's embeddings; the published numbers are those of `ClipImages`."""

    higher_is_better = False

    @property
    def protocol(self) -> str:
        """Return `cmmd/sigma10/x1000`."""
        return f"cmmd/sigma{SIGMA:g}/x{SCALE:g}"

    def compute(self) -> dict[str, float]:
        """Return `cmmd`."""
        return {"cmmd": cmmd(*self.pools()).item()}


def cmmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float64[Tensor, ""]:
    """Return 1000 (E k(x, x') + E k(y, y') - 2 E k(x, y)), k Gaussian of width 10.

    Of embeddings of length 1; those of other lengths are brought to it. Images are paired with
    themselves too, so that equal sets have zero and few images a bias, as in the authors' code
    (https://github.com/google-research/google-research/tree/master/cmmd, distance.py).
    """
    x, y = (torch.nn.functional.normalize(set_.double()) for set_ in (x, y))
    across = kernel_mean(gaussian_kernel, x, y)
    return SCALE * (mean_with_itself(x) + mean_with_itself(y) - 2 * across)


def mean_with_itself(x: Float64[Tensor, "n d"]) -> Float64[Tensor, ""]:
    """Return the mean of k(x_i, x_j) over all i and j; k(x_i, x_i) is 1."""
    return (kernel_sum_of_pairs(gaussian_kernel, x) + len(x)) / len(x) ** 2


def gaussian_kernel(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    """Return k(x, y) = exp(-|x - y|^2 / (2 sigma^2))."""
    return (squared_distances(x, y) / (-2 * SIGMA**2)).exp()
