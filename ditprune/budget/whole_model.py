"""All weights of the model compete, by one threshold."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from ditprune.budget.base import Budget, most_of
from ditprune.saliency import Scores
from ditprune.targets import PruneTarget

NUM_PATTERNS = 2**16
"""Bit patterns of half a float32."""


@dataclass(frozen=True)
class WholeModel(Budget):
    """Every layer gives its weights whose scores are below one threshold for all layers.

    With the granularity `Layer`, and if no layer reaches `max_sparsity`, exactly the best scores
    of the whole model stay. Of equal scores at the threshold, those of the first layers stay.

    Take a score that means the same in every layer. Raw scores do not: |W| RMS(X) is a hundred
    times smaller where quiet inputs flow in (the modulation of a DiT), however much depends on
    them, and such layers vanish. The shares of `RIA(activation_exponent=0.0)` compare better, and
    so does the budget `WaterFilling`.
    """

    def wanted(self, scores: Scores, sparsity: float) -> Mapping[PruneTarget, float]:
        """Return the fraction of every layer below the common threshold."""
        sizes = {target: scores.weights[target].numel() for target in scores}
        bounds = {target: (0, most_of(size, self.max_sparsity)) for target, size in sizes.items()}
        given = below_common_threshold(scores, bounds, round(sparsity * sum(sizes.values())))
        return {target: given[target] / sizes[target] for target in sizes}


def below_common_threshold(
    scores: Mapping[PruneTarget, Float[Tensor, "out in"]],
    bounds: Mapping[PruneTarget, tuple[int, int]],
    total: int,
) -> dict[PruneTarget, int]:
    """Return how many scores of every layer are below the threshold under which `total` are.

    Each layer counts at least and at most its bounds. Where the scores are what is lost, no other
    such numbers lose less. Of equals at the threshold, the last layers' count first; if the bounds
    do not allow `total`, they decide.

    The scores are never held together: scores that are not negative are ordered like their bit
    patterns, so a histogram of the upper halves and, where it reaches `total`, another of the lower
    halves find the threshold to the last bit.
    """
    least, most = (sum(bound[side] for bound in bounds.values()) for side in (0, 1))
    total = min(max(total, least), most)
    coarse = (
        cumulative(patterns(score) >> 16).clamp(*bounds[target]) for target, score in scores.items()
    )
    upper = first_of(sum(coarse, torch.zeros(NUM_PATTERNS, dtype=torch.int64)), total)
    below = {
        target: within(patterns(score), upper).clamp(*bounds[target]).int()
        for target, score in scores.items()
    }
    return split_ties(below, total)


def split_ties(
    below: Mapping[PruneTarget, Int32[Tensor, " thresholds"]], total: int
) -> dict[PruneTarget, int]:
    """Take what each layer has below the threshold, and of its equals what is left to take."""
    reached = torch.stack([counts.long() for counts in below.values()]).sum(0)
    threshold = max(first_of(reached, total), 1)
    given = {target: int(counts[threshold - 1]) for target, counts in below.items()}
    left = total - sum(given.values())
    for target, counts in reversed(list(below.items())):
        extra = min(left, int(counts[threshold]) - given[target])
        given[target] += extra
        left -= extra
    return {target: given[target] for target in below}


def patterns(score: Float[Tensor, "out in"]) -> Int32[Tensor, " n"]:
    """Return the bits of float32 numbers, as integers of the same order."""
    return score.float().abs().flatten().view(torch.int32)  # abs: the bits of -0.0 are negative


def cumulative(halves: Int32[Tensor, " n"]) -> Int64[Tensor, " patterns"]:
    """Count, for every 16-bit pattern, how many are not above it."""
    return torch.bincount(halves, minlength=NUM_PATTERNS).cumsum(0).cpu()


def within(bits: Int32[Tensor, " n"], upper: int) -> Int64[Tensor, " thresholds"]:
    """Count the patterns below an upper half, then those not above it with each lower half."""
    halves = bits >> 16
    before = (halves < upper).sum().cpu()
    lower = bits[halves == upper] & (NUM_PATTERNS - 1)
    return torch.cat([before.unsqueeze(0), before + cumulative(lower)])


def first_of(reached: Int64[Tensor, " thresholds"], total: int) -> int:
    """Return the first threshold at which `total` is reached."""
    return int((reached >= total).nonzero()[0])
