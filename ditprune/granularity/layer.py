"""All weights of a layer compete."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.granularity.base import Granularity, Pools, count_pruned
from ditprune.targets import PruneTarget


def layer_pools(score: Float[Tensor, "out in"], sparsity: float) -> Pools:
    """Return one pool of all weights."""
    num_weights = score.numel()
    return Pools("layer", torch.tensor([num_weights - count_pruned(num_weights, sparsity)]))


@dataclass(frozen=True)
class Layer(Granularity):
    """All weights of a layer compete with each other."""

    def label(self, target: PruneTarget) -> str:
        """Return `layer`."""
        return "layer"

    def pools(
        self, scores: Mapping[PruneTarget, Float[Tensor, "out in"]]
    ) -> dict[PruneTarget, Pools]:
        """Return one pool for each layer."""
        return {target: layer_pools(score, self.sparsity) for target, score in scores.items()}
