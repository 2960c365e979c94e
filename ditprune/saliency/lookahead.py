"""Lookahead (Park et al. 2020, https://arxiv.org/abs/2002.04809)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.saliency.base import Saliency
from ditprune.targets import PruneTarget, Role

Weights = Mapping[PruneTarget, Float[Tensor, "out in"]]

FOLLOWERS = {Role.MLP_UP: Role.MLP_DOWN, Role.ATTN_V: Role.ATTN_OUT}
"""What reads the outputs of a layer, and of no other. All else writes to the residual stream, or
reads it, or multiplies: there is no neighbour then, and the factor is 1."""
LEADERS = {after: before for before, after in FOLLOWERS.items()}


@dataclass(frozen=True)
class Lookahead(Saliency):
    """W_ij^2 |before_j|^2 |after_i|^2 (their lookahead distortion, squared), without any data.

    before_j is what writes to input j, a row of the layer before; after_i is what reads output i,
    a column of the layer after. The score is the distortion of the three layers' product by the
    loss of one weight. Among layers with and without neighbours it is not comparable.
    """

    def beside(self, target: PruneTarget, weights: Weights) -> "BetweenNeighbours":
        """Return the score between the two neighbours of a layer, which are in its block."""
        num_outputs, num_inputs = weights[target].shape
        before = neighbour(target, LEADERS, weights)
        after = neighbour(target, FOLLOWERS, weights)
        return BetweenNeighbours(
            fitted(None if before is None else squared_norms(weights[before], 1), num_inputs),
            fitted(None if after is None else squared_norms(weights[after], 0), num_outputs),
        )

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Return the score of a layer without neighbours: W^2."""
        return weight.float().square()


@dataclass(frozen=True, eq=False)
class BetweenNeighbours(Saliency):
    """Lookahead's score of one layer, whose neighbours are known."""

    before: Float[Tensor, " in"]
    """|before_j|^2 of every input."""
    after: Float[Tensor, " out"]
    """|after_i|^2 of every output."""

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Return W_ij^2 |before_j|^2 |after_i|^2."""
        after = self.after.to(weight.device).unsqueeze(1)
        return weight.float().square() * self.before.to(weight.device) * after


def neighbour(
    target: PruneTarget, roles: Mapping[Role, Role], weights: Weights
) -> PruneTarget | None:
    """Return the layer of the role next to this one's, in the same part of the same block.

    Of several (attentions to the image and to the text), the one whose name is alike the longest.
    """
    candidates = [
        other
        for other in weights
        if other.role is roles.get(target.role) and part_of(other) == part_of(target)
    ]
    return max(candidates, key=lambda other: likeness(other, target), default=None)


def part_of(target: PruneTarget) -> tuple[str, str]:
    """Return the name of a layer's block, and of its attention or MLP if that is a module."""
    first, *deeper = target.place.split(".")
    return target.block_name, first if deeper else ""


def likeness(one: PruneTarget, other: PruneTarget) -> int:
    """Return the length of the prefix that two names share."""
    alike = (a == b for a, b in zip(one.name, other.name, strict=False))
    return sum(1 for _ in takewhile(bool, alike))


def squared_norms(weight: Float[Tensor, "out in"], dim: int) -> Float[Tensor, " units"]:
    """Return the sums of squares along one axis."""
    return weight.float().square().sum(dim)


def fitted(norms: Float[Tensor, " units"] | None, num_units: int) -> Float[Tensor, " fitted"]:
    """Return one squared norm for each unit; ones where there is no neighbour of that width.

    A gated MLP multiplies the two halves of what its first layer gives: each unit of its second
    layer has two rows before it, and each of the two rows has the same column after it.
    """
    if norms is None:
        return torch.ones(num_units)
    if len(norms) == 2 * num_units:
        return norms.reshape(2, num_units).sum(0)
    if 2 * len(norms) == num_units:
        return norms.repeat(2)
    return norms if len(norms) == num_units else norms.new_ones(num_units)
