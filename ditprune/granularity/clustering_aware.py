"""Clustering-aware granularity, CAG (Hu et al. 2026, arXiv 2607.00927, Sec. 3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ditprune.granularity.base import Granularity, Pools, Shape
from ditprune.granularity.layer import Layer
from ditprune.granularity.row import Row
from ditprune.targets import PruneTarget, Role

Scores = Mapping[PruneTarget, Float[Tensor, "out in"]]

SMALLEST_GAP = 0.5
"""Decades between the two kinds of layers, below which `auto` sees only one kind."""
SMALLEST_SIDE = 2
"""Layers on either side of the gap, below which `auto` sees an outlier and no kind."""


def row_variation(score: Float[Tensor, "out in"]) -> float:
    """Return the squared coefficient of variation of the rows' mean scores (Eq. 9-10)."""
    means = score.double().mean(1)
    mean = means.mean().item()
    return means.var(correction=0).item() / mean**2 if mean > 0 else 0.0


@dataclass(frozen=True)
class ClusteringAware(Granularity):
    """Per row where the rows' mean scores differ much, per layer elsewhere.

    The paper gives no threshold on the coefficient; its parameter counts show which layers were
    pruned per row: the modulation layers of DiT-XL/2, none of PixArt-Sigma.
    """

    threshold: float | Literal["auto", "by-kind"] = "auto"
    """The coefficient above which a layer is pruned per row; `auto` finds the widest gap among
    the model's layers on a log scale; `by-kind` takes the modulation layers, as published."""
    rounding: Literal["exact", "floor"] = "exact"
    """Of the layers pruned per row, as in `Row`; `floor` reproduces the published counts."""

    def label(self, target: PruneTarget) -> str:
        """Return `row` or `layer` where the kind decides, else both."""
        if self.threshold != "by-kind":
            return "row or layer"
        return "row" if target.role is Role.MODULATION else "layer"

    def attainable(self, target: PruneTarget, shape: Shape, num_pruned: int) -> int:
        """Round as `Row` does where the kind decides; else nobody knows yet, and it may be less."""
        if self.threshold == "by-kind" and target.role is Role.MODULATION:
            return Row(self.rounding).attainable(target, shape, num_pruned)
        return num_pruned

    def pools(
        self, scores: Scores, num_pruned: Mapping[PruneTarget, int]
    ) -> dict[PruneTarget, Pools]:
        """Return the pools of every layer, by its coefficient or its kind."""
        per_row = self.per_row({target: row_variation(score) for target, score in scores.items()})
        rows = {target: score for target, score in scores.items() if target in per_row}
        whole = {target: score for target, score in scores.items() if target not in per_row}
        chosen = Row(self.rounding).pools(rows, num_pruned) | Layer().pools(whole, num_pruned)
        return {target: chosen[target] for target in scores}

    def per_row(self, coefficients: Mapping[PruneTarget, float]) -> set[PruneTarget]:
        """Return the layers whose rows are to be pruned one by one."""
        if self.threshold == "by-kind":
            return {target for target in coefficients if target.role is Role.MODULATION}
        threshold = self.threshold
        if threshold == "auto":
            threshold = widest_gap(list(coefficients.values()))
        return {target for target, value in coefficients.items() if value > threshold}


def widest_gap(coefficients: list[float]) -> float:
    """Return the middle of the widest gap on a log scale, or infinity if none is wide enough."""
    logs = np.log10(np.sort(np.maximum(coefficients, 1e-12)))
    gaps = np.diff(logs)[SMALLEST_SIDE - 1 : len(logs) - SMALLEST_SIDE]
    if not len(gaps) or gaps.max() < SMALLEST_GAP:
        return float("inf")
    below = int(gaps.argmax()) + SMALLEST_SIDE - 1
    return float(10 ** ((logs[below] + logs[below + 1]) / 2))
