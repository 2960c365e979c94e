"""Magnitude (Han et al. 2015, https://arxiv.org/abs/1506.02626)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.saliency.base import Saliency


@dataclass(frozen=True)
class Magnitude(Saliency):
    """|W|: what flows in does not count."""

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Return |W|."""
        return weight.float().abs()
