"""What the layer's output loses with one weight, by the Hessian H = E x x^T of its error."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.distributed import all_cores
from ditprune.saliency.base import Saliency


@dataclass(frozen=True)
class OBD(Saliency):
    """W_ij^2 E[x_j^2]: Optimal Brain Damage (Le Cun et al. 1989), with the diagonal of H.

    It ranks like Wanda, and unlike Wanda's its scores add up: to the energy that leaves the output
    with several weights, if their inputs are uncorrelated.
    """

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Return W^2 E[x^2]."""
        return weight.float().square() * stats.energy().to(weight.device).float()


@dataclass(frozen=True)
class OBS(Saliency):
    """W_ij^2 / [H^-1]_jj: Optimal Brain Surgeon (Hassibi & Stork 1993), the rows taken apart.

    It is what remains of the loss after the row's other weights have made up for this one, so it
    suits a repair. The score of SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, Eq. 3); H is
    inverted once, for all weights at once.
    """

    needs_gram: ClassVar[bool] = True

    damping: float = 0.01
    """Added to the diagonal of H, as a fraction of its mean over the channels that are alive; ten
    times as much whenever H is not positive definite even so."""

    def __post_init__(self) -> None:
        """Refuse a damping that leaves H as it is."""
        if self.damping <= 0:
            raise ValueError(f"damping must be positive, 0.01 for instance; got {self.damping}")

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Return W^2 / diag(H^-1), and zero where nothing flows in."""
        hessian = stats.second_moment().to(weight.device)
        alive = hessian.diagonal() > 0
        if not alive.any():
            return torch.zeros_like(weight, dtype=torch.float32)
        with all_cores():
            cost = 1 / diagonal_of_inverse(hessian, self.damping)
        return weight.float().square() * cost.where(alive, 0.0).float()


def diagonal_of_inverse(
    hessian: Float64[Tensor, "in in"], damping: float
) -> Float64[Tensor, " in"]:
    """Return the diagonal of the inverse of H, damped until it has one."""
    damped = hessian.clone()
    damped.diagonal().add_(damping * hessian.diagonal()[hessian.diagonal() > 0].mean())
    factor, failed = torch.linalg.cholesky_ex(damped)
    if not failed:
        return torch.cholesky_inverse(factor).diagonal()
    if not hessian.isfinite().all():
        raise ValueError("the Gram matrix holds NaN or infinity: check the calibration samples")
    return diagonal_of_inverse(hessian, 10 * damping)
