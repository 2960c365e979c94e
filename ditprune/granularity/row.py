"""The weights of one output channel compete."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ditprune.granularity.base import Granularity, Pools, count_pruned, share_evenly
from ditprune.targets import PruneTarget


def row_pools(score: Float[Tensor, "out in"], sparsity: float) -> Pools:
    """Return one pool for each row; the layer's total is exact, the first rows round up."""
    num_kept = score.numel() - count_pruned(score.numel(), sparsity)
    return Pools("row", share_evenly(num_kept, len(score)))


@dataclass(frozen=True)
class Row(Granularity):
    """The weights of one output channel compete with each other (Wanda's choice)."""

    def label(self, target: PruneTarget) -> str:
        """Return `row`."""
        return "row"

    def pools(
        self, scores: Mapping[PruneTarget, Float[Tensor, "out in"]]
    ) -> dict[PruneTarget, Pools]:
        """Return a pool for each row."""
        return {target: row_pools(score, self.sparsity) for target, score in scores.items()}
