"""One threshold for all layers, found while all of them are repaired."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.budget.base import Budget, around
from ditprune.budget.whole_model import below_common_threshold
from ditprune.cholesky import factorise
from ditprune.granularity.layer import layer_pools
from ditprune.repair.admm import ITERATIONS_PER_PENALTY, Spectrum, growth_at
from ditprune.saliency import Scores
from ditprune.targets import PruneTarget

AT_REST = 1e-4
"""Share of the weights below which an exchange does not change what a layer gives."""


@dataclass(frozen=True)
class SharedThreshold(Budget):
    """The sparsities that fall out if one threshold decides in all layers while they are repaired.

    ALPS' iterations (Meng et al. 2024, arXiv 2406.07831) run in all layers at once, and one
    threshold on the scaled weights keeps the largest of the whole model. It takes weights in units
    that mean the same everywhere, so a recipe with importance. Equal scaled weights cost unequally
    where inputs are correlated unequally, so this is a rule that has proved good, and no optimum;
    hence the limits. All layers are in memory together: about six float32 copies of the targets.
    """

    needs_gram: ClassVar[bool] = True

    max_deviation: float = 0.15
    """How far a layer's sparsity may be from that of the whole."""
    damping: float = 0.001
    """Of the Hessians, as a fraction of their mean diagonals."""
    penalty: float = 0.03
    """Where the penalty starts, relative to curvatures whose diagonal is 1."""
    max_iterations: int = 150

    def __post_init__(self) -> None:
        """Refuse what cannot be iterated."""
        if self.max_deviation < 0 or self.damping < 0 or self.penalty <= 0:
            raise ValueError(
                "max_deviation and damping must not be negative and penalty must be positive; got "
                f"{self.max_deviation}, {self.damping} and {self.penalty}"
            )

    def wanted(self, scores: Scores, sparsity: float) -> Mapping[PruneTarget, float]:
        """Return the fraction of every layer below the threshold at which the masks rest."""
        layers = {
            target: JointLayer.of(scores.weights[target], scores.stats[target], self.damping)
            for target in scores
        }
        sizes = {target: layer.goal.numel() for target, layer in layers.items()}
        bounds = {
            target: around(size, sparsity, self.max_deviation, self.max_sparsity)
            for target, size in sizes.items()
        }
        given = self.iterate(layers, bounds, round(sparsity * sum(sizes.values())))
        return {target: given[target] / sizes[target] for target in sizes}

    def iterate(
        self,
        layers: Mapping[PruneTarget, "JointLayer"],
        bounds: Mapping[PruneTarget, tuple[int, int]],
        total: int,
    ) -> dict[PruneTarget, int]:
        """Return how many weights every layer gives when the masks hardly move any more."""
        given = below_common_threshold(
            {t: layer.goal.abs() for t, layer in layers.items()}, bounds, total
        )
        for target, layer in layers.items():
            layer.begin_(given[target])
        penalty = self.penalty
        for iteration in range(1, self.max_iterations + 1):
            sizes = {target: layer.pull_(penalty).abs() for target, layer in layers.items()}
            given = below_common_threshold(sizes, bounds, total)
            for target, layer in layers.items():
                layer.project_(given[target], penalty)
            if iteration % ITERATIONS_PER_PENALTY == 0:
                share = sum(layer.exchanged_() for layer in layers.values()) / total
                if share < AT_REST:
                    break
                penalty *= growth_at(share)
        return given


@dataclass
class JointLayer:
    """One layer's share of the iterations, in columns scaled to a curvature of ones."""

    goal: Float32[Tensor, "out in"]
    wanted: Float32[Tensor, "out in"]
    spectrum: Spectrum
    full: Float32[Tensor, "out in"]
    pulled: Float32[Tensor, "out in"]
    sparse: Float32[Tensor, "out in"]
    dual: Float32[Tensor, "out in"]
    mask: Bool[Tensor, "out in"]
    mask_before: Bool[Tensor, "out in"]

    @classmethod
    def of(
        cls, weight: Float[Tensor, "out in"], stats: ActivationStats, damping: float
    ) -> "JointLayer":
        """Scale a layer and decompose its Hessian."""
        hessian = factorise(stats.second_moment(), damping)[0]
        scale = hessian.diagonal().sqrt()
        curvature = hessian / scale.outer(scale)
        goal = weight * scale
        spectrum = Spectrum.of(curvature)
        start, everything = goal.float(), torch.ones_like(goal, dtype=torch.bool)
        zeros = torch.zeros_like(start)
        wanted = (goal @ curvature).float()
        return cls(start, wanted, spectrum, start, start, start, zeros, everything, everything)

    def begin_(self, num_pruned: int) -> None:
        """Start from the largest weights."""
        self.mask = self.mask_before = layer_pools(self.goal, num_pruned).keep(self.goal.abs())
        self.sparse = self.goal.masked_fill(~self.mask, 0)

    def pull_(self, penalty: float) -> Float32[Tensor, "out in"]:
        """Bring the dense weights nearer to the sparse ones; return where those are drawn to."""
        right = self.wanted - self.dual + penalty * self.sparse
        self.full = self.spectrum.solve(right, penalty)
        self.pulled = self.full + self.dual / penalty
        return self.pulled

    def project_(self, num_pruned: int, penalty: float) -> None:
        """Keep the largest, and count the difference."""
        self.mask = layer_pools(self.pulled, num_pruned).keep(self.pulled.abs())
        self.sparse = self.pulled.masked_fill(~self.mask, 0)
        self.dual = self.dual + penalty * (self.full - self.sparse)

    def exchanged_(self) -> int:
        """Return how many weights have come into the mask since the last call."""
        count = int((self.mask & ~self.mask_before).sum())
        self.mask_before = self.mask
        return count
