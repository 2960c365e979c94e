"""Who competes with whom, and how many of them stay."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ditprune.targets import PruneTarget

Masks = Mapping[PruneTarget, Bool[Tensor, "out in"]]


@dataclass(frozen=True)
class Pools:
    """Who competes with whom inside one layer: equal runs of its weights, row after row."""

    name: str
    """What a pool is: `layer`, `row`."""
    num_kept: Int64[Tensor, " pools"]

    def keep(self, score: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        """Return the mask of the winners of every pool, in exactly the numbers wanted."""
        units = score.reshape(len(self.num_kept), -1)
        return keep_top(units, self.num_kept.to(score.device)).reshape(score.shape)


@dataclass(frozen=True)
class Granularity(abc.ABC):
    """Who competes with whom for the weights that stay."""

    sparsity: float
    """The fraction of every layer's weights to remove, in [0, 1)."""

    def __post_init__(self) -> None:
        """Refuse an impossible sparsity."""
        if not 0.0 <= self.sparsity < 1.0:
            raise ValueError(
                f"sparsity must be in [0, 1), the fraction to remove; got {self.sparsity}"
            )

    @abc.abstractmethod
    def label(self, target: PruneTarget) -> str:
        """Name the pools a layer will have, as far as known before calibration."""

    @abc.abstractmethod
    def pools(
        self, scores: Mapping[PruneTarget, Float[Tensor, "out in"]]
    ) -> dict[PruneTarget, Pools]:
        """Choose the pools of every layer."""

    def keep(self, scores: Mapping[PruneTarget, Float[Tensor, "out in"]]) -> Masks:
        """Return the mask of every layer: True = keep."""
        return {target: pools.keep(scores[target]) for target, pools in self.pools(scores).items()}


def keep_top(
    score: Float[Tensor, "pools units"], num_kept: Int64[Tensor, " pools"]
) -> Bool[Tensor, "pools units"]:
    """Keep exactly the `num_kept` best units of each pool; of equals, the first.

    Found by the threshold of each pool, because indices of all weights would take more memory
    than the weights.
    """
    threshold = kth_best(score, num_kept.clamp(min=1)).unsqueeze(1)
    better, equal = score > threshold, score == threshold
    vacant = num_kept.unsqueeze(1) - better.sum(1, keepdim=True)
    return (better | equal & (equal.cumsum(1) <= vacant)) & (num_kept > 0).unsqueeze(1)


def kth_best(
    score: Float[Tensor, "pools units"], k: Int64[Tensor, " pools"]
) -> Float[Tensor, " pools"]:
    """Return the k-th largest score of each pool, k counted from 1."""
    rank = score.shape[1] - k
    if (rank == rank[0]).all():
        return score.kthvalue(int(rank[0]) + 1, dim=1).values
    return score.sort(dim=1).values.gather(1, rank.unsqueeze(1)).squeeze(1)


def share_evenly(total: int, num_pools: int) -> Int64[Tensor, " pools"]:
    """Share out an integer: nobody gets over one more than another, and the first get more."""
    base, extra = divmod(total, num_pools)
    return base + (torch.arange(num_pools) < extra).long()


def count_pruned(num_weights: int, sparsity: float) -> int:
    """Return how many weights of a layer go: the nearest integer to the fraction."""
    return round(num_weights * sparsity)
