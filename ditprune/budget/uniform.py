"""Every layer gives the same fraction."""

from collections.abc import Mapping
from dataclasses import dataclass

from ditprune.budget.base import Budget
from ditprune.saliency import Scores
from ditprune.targets import PruneTarget


@dataclass(frozen=True)
class Uniform(Budget):
    """Every layer gives the same fraction of its weights (the paper's choice)."""

    max_sparsity: float = 1.0

    def wanted(self, scores: Scores, sparsity: float) -> Mapping[PruneTarget, float]:
        """Return the sparsity itself."""
        return dict.fromkeys(scores, sparsity)
