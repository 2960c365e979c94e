"""Clusters of rows compete: between `Row` and `Layer`. An extension of ours."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer
from torch import Tensor

from ditprune.granularity.base import Granularity, Pools, Shape, keep_top, shape_of
from ditprune.granularity.clustering_aware import row_variation
from ditprune.granularity.layer import layer_pools
from ditprune.targets import PruneTarget, Role

MAX_SPARSITY = 0.95
"""Of a cluster, unless the whole layer is to be sparser."""
TYPICAL_VARIATION = 0.1
"""The coefficient of variation at which clusters get the middle of the two budgets."""
SMALLEST_DROP = 10.0
"""By which more clusters must lower the BIC of fewer."""
SMALLEST_SPREAD = 0.01
"""Of the logarithms in a cluster: differences below 1 % in loudness divide nobody."""
SILENCE = 1e-6
"""Of the loudest row: what is quieter is all the same."""
MOST_CHUNKS = 9
"""Outputs of one adaLN layer: nine in SD3.5's blocks of dual attention."""


@dataclass(frozen=True)
class Clusters(Pools):
    """Pools that are blocks: the rows of one cluster times the columns of one cluster."""

    name: str
    row_labels: Int64[Tensor, " out"]
    column_labels: Int64[Tensor, " in"]
    num_kept: Int64[Tensor, "row_clusters column_clusters"]

    def keep(self, score: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        """Return the mask of the winners of every block."""
        mask = torch.zeros_like(score, dtype=torch.bool)
        for row_label, counts in enumerate(self.num_kept.to(score.device)):
            rows = members(self.row_labels, row_label).to(score.device)
            for column_label, count in enumerate(counts):
                columns = members(self.column_labels, column_label).to(score.device)
                block = score[rows[:, None], columns]
                kept = keep_top(block.reshape(1, -1), count.reshape(1))
                mask[rows[:, None], columns] = kept.reshape(block.shape)
        return mask

    def density(self) -> Float64[Tensor, "row_clusters column_clusters"]:
        """Return the fraction that every block keeps."""
        sizes = self.row_labels.bincount().outer(self.column_labels.bincount())
        return self.num_kept / sizes.double()


@dataclass(frozen=True)
class RowClusters(Granularity):
    """Rows that are about equally loud compete with each other.

    A cluster gives s + rho (w - s) of its weights, where s is the layer's sparsity and w what the
    cluster would give if all weights of the layer competed: rho = 1 is `Layer`, and rho = 0 lets
    every cluster give alike, as `Row` does with rows.
    """

    clusters: Literal["mixture", "chunks"] = "mixture"
    """`mixture` finds them: Gaussians over the logarithm of the rows' mean scores. `chunks` knows
    them: shift, scale and gate of adaLN, in a modulation layer; any other layer is one cluster."""
    max_clusters: int = 8
    """That `mixture` tries."""
    rho: float | None = None
    """In [0, 1]; None takes 1 / (1 + G / 0.1), G being the variation of the rows' mean scores
    (Eq. 10 of arXiv 2607.00927): the more the rows differ, the more their loudness is ignored."""

    def __post_init__(self) -> None:
        """Refuse what is no number of clusters, and no rho."""
        if self.max_clusters < 1:
            raise ValueError(f"max_clusters must be at least 1; got {self.max_clusters}")
        demand_rho(self.rho)

    def label(self, target: PruneTarget) -> str:
        """Return `row clusters`."""
        return "row clusters"

    def pools(
        self,
        scores: Mapping[PruneTarget, Float[Tensor, "out in"]],
        num_pruned: Mapping[PruneTarget, int],
    ) -> dict[PruneTarget, Pools]:
        """Return a pool for each cluster of rows."""
        return {
            target: block_pools(
                score,
                self.row_labels(target, score),
                np.zeros(score.shape[1], dtype=np.int64),
                num_pruned[target],
                self.rho,
            )
            for target, score in scores.items()
        }

    def row_labels(
        self, target: PruneTarget, score: Float[Tensor, "out in"]
    ) -> Int64[np.ndarray, " out"]:
        """Return the cluster of every row."""
        if self.clusters == "chunks":
            return chunk_labels(target, shape_of(score))
        return mixture_labels(log_loudness(score), self.max_clusters)


def chunk_labels(target: PruneTarget, shape: Shape) -> Int64[np.ndarray, " rows"]:
    """Return which of adaLN's outputs a row belongs to: six in DiT, as wide as the input each."""
    rows, inputs = shape
    is_adaln = target.role is Role.MODULATION and rows % inputs == 0
    # Where the input is narrower than the block, as in Z-Image, more parts would come out.
    return np.arange(rows) // (inputs if is_adaln and rows // inputs <= MOST_CHUNKS else rows)


def log_loudness(score: Float[Tensor, "out in"]) -> Float64[np.ndarray, " out"]:
    """Return the logarithm of the rows' mean scores, relative to the loudest."""
    means = score.double().mean(1).cpu().numpy()
    return np.log(np.maximum(means / max(means.max(), np.finfo(float).tiny), SILENCE))


def mixture_labels(
    values: Float64[np.ndarray, " members"], max_clusters: int
) -> Int64[np.ndarray, " members"]:
    """Cluster numbers by a mixture of Gaussians: by a larger one if that lowers the BIC much."""
    most = min(max_clusters, len(np.unique(values)))
    if most == 1:
        return np.zeros(len(values), dtype=np.int64)
    best, labels = fit_mixture(values[:, None], 1)
    for num_clusters in range(2, most + 1):
        bic, candidate = fit_mixture(values[:, None], num_clusters)
        if bic < best - SMALLEST_DROP:
            best, labels = bic, candidate
    return labels


def fit_mixture(
    values: Float64[np.ndarray, "members 1"], num_clusters: int
) -> tuple[float, Int64[np.ndarray, " members"]]:
    """Return the BIC of so many Gaussians, and the one that every number belongs to."""
    from sklearn.exceptions import ConvergenceWarning  # two seconds, for this granularity alone
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(num_clusters, reg_covar=SMALLEST_SPREAD**2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the BIC judges it as it is
        labels = mixture.fit_predict(values)
    return float(mixture.bic(values)), compact(labels)


def compact(labels: Integer[np.ndarray, " members"]) -> Int64[np.ndarray, " members"]:
    """Number the clusters that have members from 0."""
    return np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int64)


def block_pools(
    score: Float[Tensor, "out in"],
    row_labels: Int64[np.ndarray, " out"],
    column_labels: Int64[np.ndarray, " in"],
    num_pruned: int,
    rho: float | None,
) -> Clusters:
    """Return a pool for each block, with a budget between its fair share and that of `Layer`."""
    if rho is None:
        rho = 1 / (1 + row_variation(score) / TYPICAL_VARIATION)
    filled = count_kept(layer_pools(score, num_pruned).keep(score), row_labels, column_labels)
    sizes = np.outer(np.bincount(row_labels), np.bincount(column_labels)).astype(np.float64)
    kept = shares(sizes.ravel(), filled.ravel(), rho)
    return Clusters(
        cluster_name(*sizes.shape),
        torch.from_numpy(row_labels),
        torch.from_numpy(column_labels),
        torch.from_numpy(kept.reshape(sizes.shape)),
    )


def count_kept(
    mask: Bool[Tensor, "out in"],
    row_labels: Int64[np.ndarray, " out"],
    column_labels: Int64[np.ndarray, " in"],
) -> Float64[np.ndarray, "row_clusters column_clusters"]:
    """Return how many weights every block keeps."""
    kept = mask.cpu().numpy()
    columns = [kept[:, column_labels == label].sum(1) for label in range(column_labels.max() + 1)]
    return np.stack([np.bincount(row_labels, counts) for counts in columns], axis=1)


def shares(
    sizes: Float64[np.ndarray, " clusters"], filled: Float64[np.ndarray, " clusters"], rho: float
) -> Int64[np.ndarray, " clusters"]:
    """Return how many weights each cluster keeps; `filled` is what it would keep in `Layer`.

    What a cluster must keep at least, the others give, in proportion to what they can spare.
    """
    total, density = filled.sum(), filled.sum() / sizes.sum()
    wanted = (1 - rho) * density * sizes + rho * filled
    least = min(1 - MAX_SPARSITY, density) * sizes
    missing, spare = np.maximum(least - wanted, 0), np.maximum(wanted - least, 0)
    rate = missing.sum() / spare.sum() if missing.any() else 0.0
    return largest_remainder(np.maximum(wanted, least) - rate * spare, round(total))


def largest_remainder(
    amounts: Float64[np.ndarray, " shares"], total: int
) -> Int64[np.ndarray, " shares"]:
    """Round to integers of the same sum: up go the largest remainders; of equals, the first."""
    whole = np.floor(amounts + 1e-6).astype(np.int64)
    order = np.argsort(np.round(whole - amounts, 6), kind="stable")
    whole[order[: total - whole.sum()]] += 1
    return whole


def members(labels: Int64[Tensor, " members"], label: int) -> Int64[Tensor, " found"]:
    """Return who has a label."""
    return (labels == label).nonzero().squeeze(1)


def cluster_name(num_row_clusters: int, num_column_clusters: int) -> str:
    """Return `3 row clusters`, or `3 x 2 clusters`."""
    if num_column_clusters > 1:
        return f"{num_row_clusters} x {num_column_clusters} clusters"
    return f"{num_row_clusters} row cluster{'s' * (num_row_clusters > 1)}"


def demand_rho(rho: float | None) -> None:
    """Raise a ValueError unless rho mixes two budgets, or is to be found."""
    if rho is not None and not 0 <= rho <= 1:
        raise ValueError(
            f"rho must be in [0, 1]: 0 prunes all clusters alike, 1 as `Layer` does; got {rho}"
        )
