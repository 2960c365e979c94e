"""The weights of one output channel compete."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ditprune.granularity.base import Granularity, Pools, Runs, Shape, shape_of, share_evenly
from ditprune.targets import PruneTarget


def row_pools(score: Float[Tensor, "out in"], num_pruned: int) -> Pools:
    """Return one pool for each row; the layer's total is exact, the first rows keep one more."""
    return Runs("row", share_evenly(score.numel() - num_pruned, len(score)))


@dataclass(frozen=True)
class Row(Granularity):
    """The weights of one output channel compete with each other (Wanda's choice)."""

    rounding: Literal["exact", "floor"] = "exact"
    """`floor` takes equally many weights of every row, fewer than asked for, as Wanda's code and
    the parameter counts of arXiv 2607.00927 do."""

    def label(self, target: PruneTarget) -> str:
        """Return `row`."""
        return "row"

    def attainable(self, target: PruneTarget, shape: Shape, num_pruned: int) -> int:
        """Return the number itself, or the largest multiple of the number of rows below it."""
        return num_pruned if self.rounding == "exact" else num_pruned // shape[0] * shape[0]

    def pools(
        self,
        scores: Mapping[PruneTarget, Float[Tensor, "out in"]],
        num_pruned: Mapping[PruneTarget, int],
    ) -> dict[PruneTarget, Pools]:
        """Return a pool for each row."""
        return {
            target: row_pools(score, self.attainable(target, shape_of(score), num_pruned[target]))
            for target, score in scores.items()
        }
