"""The weights of one input channel compete."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ditprune.granularity.base import Granularity, Pools, keep_top, share_evenly
from ditprune.targets import PruneTarget


@dataclass(frozen=True)
class Columns(Pools):
    """Pools that are the columns of the layer's weights."""

    name: str
    num_kept: Int64[Tensor, " in"]

    def keep(self, score: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        """Return the mask of the winners of every column."""
        columns = score.T.contiguous()
        return keep_top(columns, self.num_kept.to(score.device)).T.contiguous()


@dataclass(frozen=True)
class Column(Granularity):
    """The weights of one input channel compete with each other.

    No input is favoured then, so that its activations decide nothing: within a column Wanda's
    score ranks as magnitude does.
    """

    def label(self, target: PruneTarget) -> str:
        """Return `column`."""
        return "column"

    def pools(
        self,
        scores: Mapping[PruneTarget, Float[Tensor, "out in"]],
        num_pruned: Mapping[PruneTarget, int],
    ) -> dict[PruneTarget, Pools]:
        """Return a pool for each column; the total is exact, the first columns keep one more."""
        return {
            target: Columns(
                "column", share_evenly(score.numel() - num_pruned[target], score.shape[1])
            )
            for target, score in scores.items()
        }
