"""Blocks of rows and columns compete. An experiment."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ditprune.granularity.base import Granularity, Pools
from ditprune.granularity.row_clusters import block_pools, compact, demand_rho
from ditprune.targets import PruneTarget

MOST_CLUSTERED = 1024
"""Rows, and columns, that are clustered; the others join them. The SVD grows with both."""
FLOOR = 1e-3
"""Added to the scores, relative to their mean: a row without any has no place otherwise."""


@dataclass(frozen=True)
class CoClusters(Granularity):
    """Rows and columns that go together compete with each other. Experimental.

    Spectral co-clustering (Dhillon 2001, https://doi.org/10.1145/502512.502550) of the scores
    themselves: it takes out how loud each row and each column is, and finds which rows have their
    large scores in the same columns. The blocks' budgets are those of `RowClusters`.
    """

    num_clusters: int = 4
    """Of rows, and as many of columns: up to its square of blocks."""
    rho: float | None = None
    """As in `RowClusters`: 1 is `Layer`, 0 lets every block give alike, None looks at the rows."""

    def __post_init__(self) -> None:
        """Refuse what is no number of clusters, and no rho."""
        if self.num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1; got {self.num_clusters}")
        demand_rho(self.rho)

    def label(self, target: PruneTarget) -> str:
        """Return `co-clusters`."""
        return "co-clusters"

    def pools(
        self,
        scores: Mapping[PruneTarget, Float[Tensor, "out in"]],
        num_pruned: Mapping[PruneTarget, int],
    ) -> dict[PruneTarget, Pools]:
        """Return a pool for each block."""
        return {
            target: block_pools(
                score,
                *co_labels(score.double().cpu().numpy(), self.num_clusters),
                num_pruned[target],
                self.rho,
            )
            for target, score in scores.items()
        }


def co_labels(
    score: Float64[np.ndarray, "out in"], num_clusters: int
) -> tuple[Int64[np.ndarray, " out"], Int64[np.ndarray, " in"]]:
    """Return the clusters of rows and of columns: those of a sample, which the others join."""
    rows, columns = sample(score.shape[0]), sample(score.shape[1])
    row_labels, column_labels = spectral_labels(score[np.ix_(rows, columns)], num_clusters)
    return (
        join(profiles(score[:, columns]), rows, row_labels),
        join(profiles(score[rows].T), columns, column_labels),
    )


def sample(num_members: int) -> Int64[np.ndarray, " sampled"]:
    """Return whom to cluster: all, or some at random, always the same."""
    order = np.random.default_rng(0).permutation(num_members)
    return np.sort(order[:MOST_CLUSTERED]).astype(np.int64)


def spectral_labels(
    score: Float64[np.ndarray, "out in"], num_clusters: int
) -> tuple[Int64[np.ndarray, " out"], Int64[np.ndarray, " in"]]:
    """Return the co-clusters of rows and of columns."""
    from sklearn.cluster import SpectralCoclustering  # two seconds, for this granularity alone
    from sklearn.exceptions import ConvergenceWarning

    num_clusters = min(num_clusters, *score.shape)
    if num_clusters == 1 or score.max() == score.min():
        return np.zeros(score.shape[0], dtype=np.int64), np.zeros(score.shape[1], dtype=np.int64)
    model = SpectralCoclustering(num_clusters, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters than asked for
        model.fit(score + FLOOR * score.mean())
    return compact(model.row_labels_), compact(model.column_labels_)


def profiles(
    score: Float64[np.ndarray, "members features"],
) -> Float64[np.ndarray, "members features"]:
    """Return where each member has its scores, however loud it is."""
    raised = score + FLOOR * score.mean() + np.finfo(float).tiny
    return raised / raised.sum(1, keepdims=True)


def join(
    members: Float64[np.ndarray, "members features"],
    sampled: Int64[np.ndarray, " sampled"],
    labels: Int64[np.ndarray, " sampled"],
) -> Int64[np.ndarray, " members"]:
    """Give those who were not sampled the label of the cluster with the nearest mean profile."""
    centres = np.stack([members[sampled[labels == k]].mean(0) for k in range(labels.max() + 1)])
    distances = (centres**2).sum(1) - 2 * members @ centres.T  # but for what all have in common
    joined = distances.argmin(1)
    joined[sampled] = labels
    return joined
