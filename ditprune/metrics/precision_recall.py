"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991)."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ditprune.metrics.base import FeatureMetric
from ditprune.metrics.kernel import BLOCK_SIZE, squared_distances

ROUNDING = 1e-12
"""Of a squared distance made of products, relative to the points' own squares; a generous bound."""


class PrecisionRecall(FeatureMetric):
    """How many generated images look real, and how many real ones can be generated."""

    higher_is_better = True

    def __init__(self, num_neighbors: int = 3, block_size: int = BLOCK_SIZE, **kwargs: Any) -> None:
        """Choose the neighbour whose distance is a ball's radius (3 in the paper)."""
        super().__init__(**kwargs)
        self.num_neighbors = num_neighbors
        self.block_size = block_size

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
    origin = reference[0].double()  # among the images, so that products cancel as little as can be
    generated, reference = generated.double() - origin, reference.double() - origin
    generated_radii = radii(generated, num_neighbors, block_size)
    reference_radii = radii(reference, num_neighbors, block_size)
    precision = share_covered(generated, reference, reference_radii, block_size)
    recall = share_covered(reference, generated, generated_radii, block_size)
    return precision, recall


def radii(
    points: Float64[Tensor, "n d"], num_neighbors: int, block_size: int
) -> Float64[Tensor, " n"]:
    """Return the distance of each point to its k-th neighbour."""
    rank = num_neighbors + 1  # every point comes first among its own neighbours
    blocks = torch.split(points, block_size)
    found = torch.cat([squared_distances(block, points).kthvalue(rank).indices for block in blocks])
    return distances(points, points[found])


def share_covered(
    points: Float64[Tensor, "n d"],
    centers: Float64[Tensor, "m d"],
    radii: Float64[Tensor, " m"],
    block_size: int,
) -> float:
    """Return the share of points that lie in a ball, its surface included."""
    blocks = torch.split(points, block_size)
    covered = torch.cat([covered_by(block, centers, radii) for block in blocks])
    return covered.double().mean().item()


def covered_by(
    points: Float64[Tensor, "n d"], centers: Float64[Tensor, "m d"], radii: Float64[Tensor, " m"]
) -> Bool[Tensor, " n"]:
    """Tell which points lie in a ball; near a surface, the products' rounding does not decide."""
    depth = radii.square() - squared_distances(points, centers)
    rounding = ROUNDING * (points.square().sum(1)[:, None] + centers.square().sum(1))
    inside = depth > rounding
    i, j = (depth.abs() <= rounding).nonzero(as_tuple=True)
    inside[i, j] = distances(points[i], centers[j]) <= radii[j]
    return inside.any(1)


def distances(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Return the distance of each row of x to that of y, from differences: nothing cancels."""
    return (x - y).square().sum(1).sqrt()
