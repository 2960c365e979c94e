"""DSnoT (Zhang et al. 2023, arXiv 2310.08915): exchange weights until the means agree."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.granularity import Pools
from ditprune.repair.base import LayerProblem, Repair
from ditprune.repair.sparse_gpt import width_of

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class DSnoT(Repair):
    """Every row exchanges one weight per cycle, such that its mean output comes back.

    A row has lost e = sum of W_j E x_j over its pruned weights. Back comes the pruned weight of
    largest sign(e) W_j E x_j / Var x_j (their growing criterion); in its place goes the kept
    weight of least |W_j| RMS x_j among those with sign(e) W_j E x_j < 0, whose loss moves e
    towards zero, too (their pruning criterion). A row ends where |e| is below the threshold,
    when the cycles are over, or, stricter than theirs, where no exchange would lower |e|.

    Weights are exchanged inside their row, and where pools are groups of a row, as in N:M, inside
    their group. So each row keeps as many as before.
    """

    needs_gram: ClassVar[bool] = False

    threshold: float = 0.1
    """On |e|, in units of the layer's outputs, as published."""
    max_cycles: int = 50

    def solve(
        self, problem: LayerProblem, pools: Pools
    ) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
        """Return the masked weights, and the mask after its exchanges."""
        weight, mask, stats = problem.weight, problem.mask.clone(), problem.stats
        salience = (weight.abs() * stats.rms().to(weight.device)).float()
        width = width_of(pools, weight)
        for _ in range(self.max_cycles):
            if not exchange_(mask, weight, salience, stats, width, self.threshold):
                break
        # Changes nothing, unless exchanges inside a row have left pools of another kind.
        mask = pools.keep(2.0 * mask + salience / salience.max().clamp(min=TINY))
        return weight.masked_fill(~mask, 0), mask


def exchange_(
    mask: Bool[Tensor, "out in"],
    weight: Float[Tensor, "out in"],
    salience: Float[Tensor, "out in"],
    stats: ActivationStats,
    width: int,
    threshold: float,
) -> bool:
    """Exchange one weight of every row that gains by it, in place; return whether any did."""
    share = weight.double() * stats.mean().to(weight.device)
    lost = share.masked_fill(mask, 0).sum(1)
    towards = share * lost.sign().unsqueeze(1)
    comes = (towards / variance(stats).to(weight.device)).where(~mask & (towards > 0), -torch.inf)
    goes = salience.where(mask & (towards < 0), torch.inf)
    back, gone, possible = pairs(comes, goes, width)
    left = lost - taken(share, back) + taken(share, gone)
    gains = possible & (lost.abs() >= threshold) & (left.abs() < lost.abs())
    row = gains.nonzero().squeeze(1)
    mask[row, back[row]] = True
    mask[row, gone[row]] = False
    return bool(gains.any())


def variance(stats: ActivationStats) -> Float64[Tensor, " in"]:
    """Return Var x, never quite zero: a constant channel is the best one to mend a mean by."""
    energy = stats.energy()
    spread = energy - stats.mean().square()
    return spread.maximum(1e-6 * energy).clamp(min=TINY)


def pairs(
    comes: Float64[Tensor, "out in"], goes: Float[Tensor, "out in"], width: int
) -> tuple[Tensor, Tensor, Bool[Tensor, " out"]]:
    """Return for each row which weight comes, which of its group goes, and if there are two."""
    best, comer = comes.unflatten(1, (-1, width)).max(2)
    least, goer = goes.unflatten(1, (-1, width)).min(2)
    best, group = best.where(least.isfinite(), -torch.inf).max(1, keepdim=True)
    chosen = [(group * width + index.gather(1, group)).squeeze(1) for index in (comer, goer)]
    return chosen[0], chosen[1], best.isfinite().squeeze(1)


def taken(rows: Float64[Tensor, "out in"], index: Tensor) -> Float64[Tensor, " out"]:
    """Return one entry of every row."""
    return rows.gather(1, index.unsqueeze(1)).squeeze(1)
