"""A few layers with the clusters found in them: what a person looks at."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from ditprune.granularity import Pools
from ditprune.granularity.row_clusters import Clusters
from ditprune.saliency import Scores
from ditprune.targets import PruneTarget


class ClusteredLayer(NamedTuple):
    """A layer whose rows, or rows and columns, were grouped by their scores."""

    target: PruneTarget
    score: Float[Tensor, "out in"]
    clusters: Clusters
    row_variation: float

    def title(self) -> str:
        """Name the layer, and say what was found in it and what the clusters keep."""
        kept = self.clusters.density()
        return (
            f"{self.target.name}: row variation {self.row_variation:.2g}\n"
            f"{self.clusters.name} that keep {kept.min():.0%} to {kept.max():.0%}"
        )


def telling(
    scores: Scores,
    pools: Mapping[PruneTarget, Pools],
    row_variations: Mapping[PruneTarget, float],
) -> list[ClusteredLayer]:
    """Return, of each role, the layer with several clusters whose rows differ most.

    Layers of one role look alike, so one of them is enough; and clusters decide most where rows
    differ most. Where each row is a pool, or the layer is the only one, there is nothing to see.
    """
    found = {t: p for t, p in pools.items() if isinstance(p, Clusters) and p.num_kept.numel() > 1}
    ordered = sorted(found, key=row_variations.__getitem__)
    most = {target.role: target for target in ordered}  # the last of a role stays
    return [
        ClusteredLayer(target, scores[target].cpu(), found[target], row_variations[target])
        for target in found
        if most[target.role] == target
    ]
