"""Outlier-weighed layerwise sparsity, OWL (Yin et al. 2024, https://arxiv.org/abs/2310.05175)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ditprune.budget.base import Budget
from ditprune.saliency import Energy, Scores
from ditprune.targets import PruneTarget


@dataclass(frozen=True)
class OWL(Budget):
    """A block with more outliers among its scores gives less.

    With D the share of scores above M times their mean, the sparsities are spread between
    s + lambda, where D is least, and s - lambda, where it is greatest; then all are shifted to
    meet the budget. The scores are Wanda's, as published, whatever the recipe's saliency is: the
    share depends on their distribution, and with it the published M and lambda. (Per token: the
    layers of a language model see equally many tokens, those of a DiT do not.)
    """

    outlier_ratio: float = 5.0
    """Their M."""
    spread: float = 0.08
    """Their lambda."""
    per: Literal["block", "layer"] = "block"
    """Whose scores are one distribution and have one sparsity; `block` is published, and takes the
    layers of a block together, quiet and loud."""

    def __post_init__(self) -> None:
        """Refuse what makes no outlier, or rewards having none."""
        if self.outlier_ratio <= 0 or self.spread < 0:
            raise ValueError(
                "outlier_ratio must be positive and spread must not be negative; "
                f"got {self.outlier_ratio} and {self.spread}"
            )

    def wanted(self, scores: Scores, sparsity: float) -> Mapping[PruneTarget, float]:
        """Return the sparsity of every layer, by the outliers of its block."""
        wanda = Scores(Energy(1.0, 1.0), scores.weights, scores.stats)
        groups: dict[str, list[PruneTarget]] = {}
        for target in wanda:
            groups.setdefault(self.group_of(target), []).append(target)
        shares = {
            name: outlier_share(wanda, targets, self.outlier_ratio)
            for name, targets in groups.items()
        }
        deviations = spread_out(shares, self.spread)
        return {target: sparsity + deviations[self.group_of(target)] for target in wanda}

    def group_of(self, target: PruneTarget) -> str:
        """Name what a layer shares its sparsity with."""
        return target.block_name if self.per == "block" else target.name


def outlier_share(scores: Scores, targets: Sequence[PruneTarget], ratio: float) -> float:
    """Return the share of the layers' scores above `ratio` times their common mean."""
    num_scores = sum(scores.weights[target].numel() for target in targets)
    total = sum(scores[target].sum(1, dtype=torch.float64).sum().item() for target in targets)
    outlying = ratio * total / num_scores
    return sum(int((scores[target] > outlying).sum()) for target in targets) / num_scores


def spread_out(shares: Mapping[str, float], spread: float) -> dict[str, float]:
    """Map the least share to +spread and the greatest to -spread; all to 0 if they are equal."""
    least, greatest = min(shares.values()), max(shares.values())
    if least == greatest:
        return dict.fromkeys(shares, 0.0)
    return {
        name: spread - 2 * spread * (share - least) / (greatest - least)
        for name, share in shares.items()
    }
