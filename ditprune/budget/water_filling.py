"""The least relative energy lost, summed over the layers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.budget.base import Budget, around
from ditprune.budget.whole_model import below_common_threshold
from ditprune.saliency import OBD, Saliency, Scores
from ditprune.targets import PruneTarget


@dataclass(frozen=True)
class WaterFilling(Budget):
    """The sparsities that minimise the sum over layers of the relative output energy lost.

    A layer loses e_l(s) = (sum of its s n smallest W^2 E[x^2]) / (sum of all), whatever the
    recipe's saliency is. Sorted energies are convex, so at the optimum all layers share one
    threshold on the next weight's energy over its layer's: water finds one level. (Own proposal;
    what a layer loses is not what the images lose, hence the narrow limits.)
    """

    max_deviation: float = 0.15
    """How far a layer's sparsity may be from that of the whole."""

    def __post_init__(self) -> None:
        """Refuse a negative deviation."""
        if self.max_deviation < 0:
            raise ValueError(f"max_deviation must not be negative; got {self.max_deviation}")

    def wanted(self, scores: Scores, sparsity: float) -> Mapping[PruneTarget, float]:
        """Return the fraction of every layer below the water."""
        energies = Scores(RelativeEnergy(), scores.weights, scores.stats)
        sizes = {target: scores.weights[target].numel() for target in scores}
        bounds = {
            target: around(size, sparsity, self.max_deviation, self.max_sparsity)
            for target, size in sizes.items()
        }
        given = below_common_threshold(energies, bounds, round(sparsity * sum(sizes.values())))
        return {target: given[target] / sizes[target] for target in sizes}


@dataclass(frozen=True)
class RelativeEnergy(Saliency):
    """W_ij^2 E[x_j^2] as a share of the layer's sum."""

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Return the shares: all zero in a layer into which nothing flows."""
        energy = OBD().score(weight, stats)
        total = energy.sum(1, dtype=torch.float64).sum().item()
        return energy / total if total > 0 else energy
