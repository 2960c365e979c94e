"""Weight and activation energy, balanced by exponents (Hu et al. 2026, arXiv 2607.00927)."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Float64
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
    over_timesteps: Literal["mean", "max"] = "mean"
    """The RMS over the tokens of all timesteps, or that of the bin where the channel is loudest;
    to know the bins, calibrate with several (`num_timestep_bins`)."""

    def __post_init__(self) -> None:
        """Refuse exponents that cannot rank."""
        if self.weight_exponent <= 0 or self.activation_exponent < 0:
            raise ValueError(
                "weight_exponent must be positive and activation_exponent must not be negative; "
                f"got {self.weight_exponent} and {self.activation_exponent}"
            )

    @property
    def balance(self) -> float:
        """alpha = n/m: |W| RMS(X)^alpha ranks a layer's weights alike."""
        return self.activation_exponent / self.weight_exponent

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Return |W|^m RMS(X)^n."""
        rms = rms_by_bin(stats).amax(0) if self.over_timesteps == "max" else stats.rms()
        activation = rms.to(weight.device).pow(self.activation_exponent).float()
        return weight.float().abs().pow(self.weight_exponent) * activation


def rms_by_bin(stats: ActivationStats) -> Float64[Tensor, "seen in"]:
    """Return the RMS of every channel, for each timestep bin that saw tokens."""
    seen = stats.weight > 0
    num_tokens = stats.weight[seen].to(stats.sum_of_squares).unsqueeze(1)
    return (stats.sum_of_squares[seen.to(stats.sum_of_squares.device)] / num_tokens).sqrt()


@dataclass(frozen=True)
class SearchedEnergy(Saliency):
    """|W| RMS(X)^alpha, with the alpha whose masks spoil the model's predictions least.

    One number for the whole model, found before pruning (`ditprune.alpha`).
    """

    alphas: tuple[float, ...] = (0.0, 0.25, 1 / 3, 0.5, 0.67, 0.75, 1.0, 1.5)

    def __post_init__(self) -> None:
        """Refuse a search among nothing."""
        if not self.alphas or min(self.alphas) < 0:
            raise ValueError(f"alphas must be numbers that are not negative; got {self.alphas}")

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Refuse: the balance must be settled first."""
        raise RuntimeError("the balance is open; ditprune.alpha.settle chooses it")
