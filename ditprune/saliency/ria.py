"""Relative importance and activations, RIA (Zhang et al. 2024, ICLR, "Plug-and-Play")."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.saliency.base import Saliency


@dataclass(frozen=True)
class RIA(Saliency):
    """(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) RMS(X_j)^a (their Eq. 4).

    What counts is a weight's share of its column and of its row, so that no channel is emptied.
    """

    activation_exponent: float = 0.5
    """Their a."""

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Return the shares times RMS(X)^a."""
        magnitude = weight.float().abs()
        shares = share(magnitude, 0) + share(magnitude, 1)
        return shares * stats.rms().to(weight.device).pow(self.activation_exponent).float()


def share(magnitude: Float[Tensor, "out in"], dim: int) -> Float[Tensor, "out in"]:
    """Return the share of each weight in the sum along one axis."""
    total = magnitude.sum(dim, keepdim=True, dtype=torch.float64).float()
    # A dead row or column sums to zero; its weights are zero too, and so is their share.
    return magnitude / total.where(total > 0, 1.0)
