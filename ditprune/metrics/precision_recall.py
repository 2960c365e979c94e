"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991)."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ditprune.metrics.base import FeatureMetric
from ditprune.metrics.features import in_full_precision
from ditprune.metrics.frechet import mean_of
from ditprune.metrics.kernel import squared_distances
from ditprune.metrics.products import products

BLOCK_SIZE = 512
"""Rows of a matrix of pairs in memory at once: 0.1 GB beside 50,000 images."""


class PrecisionRecall(FeatureMetric):
    """How many generated images look real, and how many real ones can be generated.

    Products in float32 find the few pairs on which something depends; those are then measured in
    float64 from their differences, so that the numbers are those of float64 throughout.
    """

    higher_is_better = True

    def __init__(self, num_neighbors: int = 3, block_size: int = BLOCK_SIZE, **kwargs: Any) -> None:
        """Choose the neighbour whose distance is a ball's radius (3 in the paper)."""
        super().__init__(**kwargs)
        if num_neighbors < 1:
            raise ValueError(f"num_neighbors counts from 1; got {num_neighbors}")
        self.num_neighbors = num_neighbors
        self.fewest = num_neighbors + 1
        self.block_size = block_size

    @property
    def protocol(self) -> str:
        """Return `precision_recall/k` and the neighbour."""
        return f"precision_recall/k{self.num_neighbors}"

    def compute(self) -> dict[str, float]:
        """Return `precision` and `recall`."""
        precision, recall = precision_recall(*self.pools(), self.num_neighbors, self.block_size)
        return {"precision": precision, "recall": recall}


def precision_recall(
    generated: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    num_neighbors: int = 3,
    block_size: int = BLOCK_SIZE,
) -> tuple[float, float]:
    """Return the share of generated images in reference balls, and the reverse (Eq. 1-3).

    Raises:
        ValueError: if an image of either set lacks that many neighbours.
    """
    if min(len(generated), len(reference)) <= num_neighbors:
        raise ValueError(
            f"precision and recall with {num_neighbors} neighbours need at least "
            f"{num_neighbors + 1} images in each set; got {len(generated)} generated and "
            f"{len(reference)} of reference"
        )
    with in_full_precision(generated.device):
        origin = mean_of(reference)
        own = (about(points, mean_of(points)) for points in (generated, reference))
        radii_x, radii_y = (radii(points, num_neighbors, block_size) for points in own)
        x, y = about(generated, origin), about(reference, origin)
        covered = [
            covered_by_each_other(block, y, block_radii, radii_y)
            for block, block_radii in zip(
                x.blocks(block_size), radii_x.split(block_size), strict=True
            )
        ]
    precision = torch.cat([inside for inside, _ in covered]).double().mean().item()
    recall = torch.stack([reached for _, reached in covered]).any(0).double().mean().item()
    return precision, recall


@dataclass(frozen=True)
class Points:
    """Points as they came, and in float32 about some origin, where products are fast."""

    exact: Float[Tensor, "n d"]
    rounded: Float[Tensor, "n d"]
    squares: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, some: slice, /) -> "Points":
        return Points(self.exact[some], self.rounded[some], self.squares[some])

    def blocks(self, size: int) -> Iterator["Points"]:
        """Yield some points after others."""
        return (self[start : start + size] for start in range(0, len(self), size))

    @property
    def rounding(self) -> Float[Tensor, " n"]:
        """What a squared distance that is made of products can be off by, shared by its points.

        A product of d terms is off by d units of rounding of the points' own squares, in whatever
        order it is added up (Higham 2002, Sec. 3.1); the 16 are for what else is rounded.
        """
        unit = torch.finfo(self.rounded.dtype).eps / 2
        return (self.rounded.shape[1] + 16) * unit * self.squares


def about(points: Float[Tensor, "n d"], origin: Float64[Tensor, " d"]) -> Points:
    """Return points about an origin near them, so that products cancel as little as can be.

    Raises:
        ValueError: if some are too far from it, or nowhere.
    """
    rounded = torch.empty_like(points, dtype=torch.float32)
    squares = rounded.new_empty(len(points))
    parts = (x.split(BLOCK_SIZE) for x in (points, rounded, squares))
    for block, own, lengths in zip(*parts, strict=True):
        own.copy_(block - origin)
        lengths.copy_(own.double().square().sum(1))
    if not squares.isfinite().all():
        raise ValueError(
            f"{(~squares.isfinite()).sum()} of {len(points)} images have features that are not "
            "finite, or too large for float32; precision and recall have no number for them"
        )
    return Points(points, rounded, squares)


def radii(points: Points, num_neighbors: int, block_size: int) -> Float64[Tensor, " n"]:
    """Return the distance of each point to its k-th neighbour."""
    rank = num_neighbors + 1  # every point comes first among its own neighbours
    squares, found = nearest(points, rank + 1, block_size)
    last = found[:, rank - 1].split(block_size)
    pairs = zip(points.exact.split(block_size), last, strict=True)
    radii = torch.cat([distances(block, points.exact[others]) for block, others in pairs])
    slack = 2 * (points.rounding + points.rounding.max())
    # Another point may be the k-th if one before or after it is as near, as far as products tell.
    before, after = squares[:, rank - 1 : rank + 1].T - squares[:, rank - 2 : rank].T
    unsure = ((before <= slack) | (after <= slack)).nonzero().squeeze(1)
    if len(unsure):
        radii[unsure] = radii_of_near_ties(points.exact, unsure, num_neighbors, block_size)
    return radii


def nearest(
    points: Points, num: int, block_size: int
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Return the squared distances of each point to those that seem nearest, and which they are.

    Sorted; infinite where there are not so many.
    """
    squares = points.squares.new_full((len(points.squares), num), torch.inf)
    found = torch.zeros_like(squares, dtype=torch.long)
    for start in range(0, len(squares), block_size):
        stop = min(start + block_size, len(squares))
        # What lies before the block has met it already, as its columns.
        gaps = gaps_by_products(points[start:stop], points[start:])
        keep_nearest_(squares[start:stop], found[start:stop], gaps, start)
        keep_nearest_(squares[stop:], found[stop:], gaps[:, stop - start :].T, start)
    return squares, found


def gaps_by_products(x: Points, y: Points) -> Float[Tensor, "n m"]:
    """Return the squared distances of all pairs: fast, and rounded."""
    return products(x.rounded, y.rounded).mul_(-2).add_(y.squares).add_(x.squares[:, None])


def keep_nearest_(
    squares: Float[Tensor, "n k"], found: Int64[Tensor, "n k"], gaps: Float[Tensor, "n m"], at: int
) -> None:
    """Let the nearest of some more points, numbered from `at`, take the places of others."""
    nearest = gaps.topk(min(squares.shape[1], gaps.shape[1]), largest=False)
    both = torch.cat([squares, nearest.values], 1), torch.cat([found, nearest.indices + at], 1)
    kept = both[0].topk(squares.shape[1], largest=False)
    squares.copy_(kept.values)
    found.copy_(both[1].gather(1, kept.indices))


def radii_of_near_ties(
    points: Float[Tensor, "n d"], some: Int64[Tensor, " s"], num_neighbors: int, block_size: int
) -> Float64[Tensor, " s"]:
    """Return the radii of some points, whose neighbours float32 cannot tell apart."""
    # Many copies are no ties to break: what has as many as neighbours are asked for has radius 0.
    radii = torch.zeros_like(some, dtype=torch.float64)
    apart = (num_copies(points)[some] <= num_neighbors).nonzero().squeeze(1)
    for part in apart.split(block_size) if len(apart) else ():
        radii[part] = radii_by_double_products(points, some[part], num_neighbors + 1)
    return radii


def num_copies(points: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
    """Return how many points each is equal to, bit by bit; itself is one."""
    blocks = (block.double().cpu().numpy() for block in points.split(BLOCK_SIZE))
    digests = [hashlib.blake2b(row.tobytes()).digest() for block in blocks for row in block]
    counts = Counter(digests)
    return torch.tensor([counts[digest] for digest in digests], device=points.device)


def radii_by_double_products(
    points: Float[Tensor, "n d"], some: Int64[Tensor, " s"], rank: int
) -> Float64[Tensor, " s"]:
    """Return the radii of some points: differences decide what float64's products may not."""
    gaps, slack = gaps_by_double_products(points, some)
    last = gaps.kthvalue(rank, 1).values
    near = gaps <= (last + 2 * slack)[:, None]
    candidates = zip(points[some], near, strict=True)
    exact = [distances(point[None], points[others]) for point, others in candidates]
    return torch.stack([each.kthvalue(rank).values for each in exact])


def gaps_by_double_products(
    points: Float[Tensor, "n d"], some: Int64[Tensor, " s"]
) -> tuple[Float64[Tensor, "s n"], Float64[Tensor, " s"]]:
    """Return the squared distances of some points to all, and what each may be off by."""
    origin = points[some[0]].double()
    block = points[some].double() - origin
    gaps, lengths = [], []
    for part in points.split(BLOCK_SIZE):
        others = part.double() - origin
        gaps.append(squared_distances(block, others))
        lengths.append(others.square().sum(1).max())
    unit = torch.finfo(torch.float64).eps / 2
    squares = block.square().sum(1) + torch.stack(lengths).max()
    return torch.cat(gaps, 1), (points.shape[1] + 16) * unit * squares


def covered_by_each_other(
    x: Points, y: Points, radii_x: Float64[Tensor, " n"], radii_y: Float64[Tensor, " m"]
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " m"]]:
    """Tell which of x lie in a ball around one of y, its surface included, and the reverse."""
    gaps = gaps_by_products(x, y)
    return covered(gaps, x, y, radii_y), covered(gaps.T, y, x, radii_x)


def covered(
    gaps: Float[Tensor, "n m"], points: Points, centers: Points, radii: Float64[Tensor, " m"]
) -> Bool[Tensor, " n"]:
    """Tell which points lie in a ball; near a surface, the products' rounding does not decide."""
    squares = radii.square().float()
    deepest = (gaps - squares).amin(1)
    slack = (
        points.rounding + centers.rounding.max() + torch.finfo(torch.float32).eps * squares.max()
    )
    inside = deepest < -slack
    unsure = (deepest.abs() <= slack).nonzero().squeeze(1)
    for row in unsure:
        near = (gaps[row] - squares <= slack[row]).nonzero().squeeze(1)
        gap = distances(points.exact[row, None], centers.exact[near])
        inside[row] = (gap <= radii[near]).any()
    return inside


def distances(x: Float[Tensor, "_ d"], y: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Return the distance of each row of x to that of y, from differences: nothing cancels."""
    return (x.double() - y.double()).square().sum(1).sqrt()
