"""Who competes with whom, and how many of them stay."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from ditprune.targets import PruneTarget

Masks = Mapping[PruneTarget, Bool[Tensor, "out in"]]
Shape = tuple[int, int]


class Pools(abc.ABC):
    """Who competes with whom inside one layer. A repair that moves the mask comes back to it."""

    name: str
    """What a pool is: `layer`, `row`, `2:4`."""

    @abc.abstractmethod
    def keep(self, score: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        """Return the mask of the winners of every pool, in exactly the numbers wanted."""


@dataclass(frozen=True)
class Runs(Pools):
    """Pools that are equal runs of the layer's weights, row after row."""

    name: str
    num_kept: Int64[Tensor, " pools"]

    def keep(self, score: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        """Return the mask of the winners of every run."""
        units = score.reshape(len(self.num_kept), -1)
        return keep_top(units, self.num_kept.to(score.device)).reshape(score.shape)


class Granularity(abc.ABC):
    """Who competes with whom for the weights that stay."""

    one_sparsity: ClassVar[bool] = False
    """Whether every layer must give the same fraction."""

    @abc.abstractmethod
    def label(self, target: PruneTarget) -> str:
        """Name the pools a layer will have, as far as known before calibration."""

    @abc.abstractmethod
    def pools(
        self,
        scores: Mapping[PruneTarget, Float[Tensor, "out in"]],
        num_pruned: Mapping[PruneTarget, int],
    ) -> dict[PruneTarget, Pools]:
        """Choose the pools of every layer, of which so many weights go."""

    def attainable(self, target: PruneTarget, shape: Shape, num_pruned: int) -> int:
        """Return how many weights of a layer really go, where so many are to go.

        Raises:
            ValueError: if no such number is possible.
        """
        return num_pruned

    def keep(
        self,
        scores: Mapping[PruneTarget, Float[Tensor, "out in"]],
        num_pruned: Mapping[PruneTarget, int],
    ) -> Masks:
        """Return the mask of every layer: True = keep."""
        pools = self.pools(scores, num_pruned)
        return {target: pools[target].keep(scores[target]) for target in pools}


def keep_top(
    score: Float[Tensor, "pools units"], num_kept: Int64[Tensor, " pools"]
) -> Bool[Tensor, "pools units"]:
    """Keep exactly the `num_kept` best units of each pool; of equals, the first.

    Found by the threshold of each pool, because indices of all weights would take more memory
    than the weights, and sorting them stably more time (benchmarks/selection.py).
    """
    threshold = kth_best(score, num_kept.clamp(min=1)).unsqueeze(1)
    kept = score >= threshold
    crowded = kept.sum(1, dtype=torch.int32) > num_kept
    if crowded.any():
        kept[crowded] = without_late_equals(score[crowded], threshold[crowded], num_kept[crowded])
    return kept


def without_late_equals(
    score: Float[Tensor, "pools units"],
    threshold: Float[Tensor, "pools 1"],
    num_kept: Int64[Tensor, " pools"],
) -> Bool[Tensor, "pools units"]:
    """Keep what is above the threshold, and the first of what equals it, until all are there."""
    better, equal = score > threshold, score == threshold
    vacant = num_kept.unsqueeze(1) - better.sum(1, keepdim=True)
    return better | equal & (equal.cumsum(1, dtype=torch.int32) <= vacant)


def kth_best(
    score: Float[Tensor, "pools units"], k: Int64[Tensor, " pools"]
) -> Float[Tensor, " pools"]:
    """Return the k-th largest score of each pool, k counted from 1."""
    rank = score.shape[1] - k
    if score.device.type == "cpu":
        return torch.from_numpy(of_rank(score.detach().numpy(), rank.numpy()))
    if (rank == rank[0]).all():
        return score.kthvalue(int(rank[0]) + 1, dim=1).values
    return score.sort(dim=1).values.gather(1, rank.unsqueeze(1)).squeeze(1)


def of_rank(
    score: Float[np.ndarray, "pools units"], rank: Int64[np.ndarray, " pools"]
) -> Float[np.ndarray, " pools"]:
    """Return the score of each pool that has so many below it; torch takes thrice as long."""
    if (rank == rank[0]).all():
        return np.partition(score, rank[0], axis=1)[:, rank[0]].copy()
    ordered = np.partition(score, np.unique(rank), axis=1)
    return np.take_along_axis(ordered, rank[:, None], axis=1)[:, 0]


def share_evenly(total: int, num_pools: int) -> Int64[Tensor, " pools"]:
    """Share out an integer: nobody gets over one more than another, and the first get more."""
    base, extra = divmod(total, num_pools)
    return base + (torch.arange(num_pools) < extra).long()


def shape_of(matrix: Shaped[Tensor, "out in"]) -> Shape:
    """Return rows and columns."""
    return matrix.shape[0], matrix.shape[1]
