"""All weights of a layer compete."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.granularity.base import Granularity, Pools, Runs
from ditprune.targets import PruneTarget


def layer_pools(score: Float[Tensor, "out in"], num_pruned: int) -> Pools:
    """Return one pool of all weights."""
    return Runs("layer", torch.tensor([score.numel() - num_pruned]))


@dataclass(frozen=True)
class Layer(Granularity):
    """All weights of a layer compete with each other."""

    def label(self, target: PruneTarget) -> str:
        """Return `layer`."""
        return "layer"

    def pools(
        self,
        scores: Mapping[PruneTarget, Float[Tensor, "out in"]],
        num_pruned: Mapping[PruneTarget, int],
    ) -> dict[PruneTarget, Pools]:
        """Return one pool for each layer."""
        return {target: layer_pools(score, num_pruned[target]) for target, score in scores.items()}
