"""Weight and activation energy, balanced by exponents (Hu et al. 2026, arXiv 2607.00927)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.saliency.base import Saliency


@dataclass(frozen=True)
class Energy(Saliency):
    """|W_ij|^m RMS(X_j)^n (Eq. 6; the RMS is ||X_j||_2 up to a constant of the layer).

    (m, n) = (2, 1) is DiT-Pruning's score (Eq. 7); (1, 1) is Wanda's (Sun et al. 2023,
    https://arxiv.org/abs/2306.11695). Only n/m decides who wins inside one layer.
    """

    weight_exponent: float = 2.0
    activation_exponent: float = 1.0

    def __post_init__(self) -> None:
        """Refuse exponents that cannot rank."""
        if self.weight_exponent <= 0 or self.activation_exponent < 0:
            raise ValueError(
                "weight_exponent must be positive and activation_exponent must not be negative; "
                f"got {self.weight_exponent} and {self.activation_exponent}"
            )

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Return |W|^m RMS(X)^n."""
        activation = stats.rms().to(weight.device).pow(self.activation_exponent).float()
        return weight.float().abs().pow(self.weight_exponent) * activation
