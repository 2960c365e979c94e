"""What the layer's output loses with one weight, by the Hessian H = E x x^T of its error."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.cholesky import alive, inverse_factor
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
        with all_cores():
            diagonal_of_inverse = inverse_factor(hessian, self.damping).square().sum(0)
        cost = (1 / diagonal_of_inverse).where(alive(hessian), 0.0)
        return weight.float().square() * cost.float()
