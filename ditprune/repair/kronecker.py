"""ADMM for the error of the images, not of the layer: Kronecker-factored curvature."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from ditprune.cholesky import factorise
from ditprune.granularity import Pools
from ditprune.repair.admm import resting_mask
from ditprune.repair.base import LayerProblem, Repair
from ditprune.repair.least_squares import least_squares


@dataclass(frozen=True)
class KroneckerADMM(Repair):
    """Minimises tr G (W - W') H (W - W')^T over weights and mask.

    H is the second moment of the layer's inputs and G that of the derivatives of the final image
    by its outputs (K-FAC's factors, Martens & Grosse 2015, arXiv 1503.05671), so that this is,
    to second order, what the image loses. An output channel whose errors others can make up for
    costs little. The mask is found as in ALPS (Meng et al. 2024, arXiv 2406.07831), where the
    inverse is diagonal in the eigenvectors of G and H; the weights then by conjugate gradients.
    Without importance G is the identity, and this is ADMM.
    """

    damping: float = 0.001
    """Of H, as a fraction of its mean diagonal; grows where that is not enough."""
    output_damping: float = 0.05
    """How much of G is replaced by its own diagonal."""
    penalty: float = 0.03
    """Where the penalty starts, relative to a curvature whose diagonal is 1."""
    max_iterations: int = 300
    num_refinements: int = 60
    """Conjugate gradients after the mask is found."""

    def __post_init__(self) -> None:
        """Refuse what cannot be solved."""
        if self.damping < 0 or self.penalty <= 0 or not 0 <= self.output_damping <= 1:
            raise ValueError(
                "damping must not be negative, penalty must be positive, output_damping a share "
                f"in [0, 1]; got {self.damping}, {self.penalty} and {self.output_damping}"
            )

    def solve(
        self, problem: LayerProblem, pools: Pools
    ) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
        """Return the best weights found, and their mask."""
        damped = factorise(problem.hessian, self.damping)[0]
        identity = torch.eye(len(problem.weight), dtype=damped.dtype, device=damped.device)
        outputs = identity if problem.outputs is None else problem.outputs.to(damped.device)
        if not outputs.any():  # derivatives that are all zero say nothing of the channels
            outputs = identity
        curvature = Curvature.of(damped, mixed(outputs, self.output_damping))
        goal = curvature.scaled(problem.weight)
        mask = self.find_mask(goal, problem.mask, curvature, pools)
        start = least_squares(problem.weight, mask, damped, 1e-4, 500)
        solved = refine(curvature.scaled(start), goal, mask, curvature, self.num_refinements)
        return curvature.unscaled(solved), mask

    def find_mask(
        self,
        goal: Float64[Tensor, "out in"],
        mask: Bool[Tensor, "out in"],
        curvature: "Curvature",
        pools: Pools,
    ) -> Bool[Tensor, "out in"]:
        """Return the mask at which the iterations come to rest."""
        spectrum, wanted = Spectrum.of(curvature), curvature.times(goal).float()
        return resting_mask(
            goal.float(), wanted, mask, spectrum.solve, pools, self.penalty, self.max_iterations
        )


class Curvature(NamedTuple):
    """G and H, scaled to a diagonal of ones; and the scales."""

    outputs: Float64[Tensor, "out out"]
    inputs: Float64[Tensor, "in in"]
    output_scale: Float64[Tensor, "out 1"]
    input_scale: Float64[Tensor, " in"]

    @classmethod
    def of(
        cls, inputs: Float64[Tensor, "in in"], outputs: Float64[Tensor, "out out"]
    ) -> "Curvature":
        """Scale both factors."""
        row, column = outputs.diagonal().sqrt(), inputs.diagonal().sqrt()
        return cls(
            outputs / row.outer(row), inputs / column.outer(column), row.unsqueeze(1), column
        )

    def scaled(self, weight: Float[Tensor, "out in"]) -> Float64[Tensor, "out in"]:
        """Return weights in units in which every one of them matters alike."""
        return weight * self.output_scale * self.input_scale

    def unscaled(self, weight: Float64[Tensor, "out in"]) -> Float64[Tensor, "out in"]:
        """Return weights in units of the model."""
        return weight / self.output_scale / self.input_scale

    def times(self, weight: Float64[Tensor, "out in"]) -> Float64[Tensor, "out in"]:
        """Return G W H."""
        return self.outputs @ weight @ self.inputs


class Spectrum(NamedTuple):
    """The eigenvectors of both factors, and the products of their eigenvalues."""

    values: Float32[Tensor, "out in"]
    left: Float32[Tensor, "out out"]
    right: Float32[Tensor, "in in"]

    @classmethod
    def of(cls, curvature: Curvature) -> "Spectrum":
        """Decompose both factors, once for every penalty."""
        left_values, left = torch.linalg.eigh(curvature.outputs)
        right_values, right = torch.linalg.eigh(curvature.inputs)
        values = left_values.clamp(min=0).outer(right_values.clamp(min=0))
        return cls(values.float(), left.float(), right.float())

    def solve(self, right: Float32[Tensor, "out in"], penalty: float) -> Float32[Tensor, "out in"]:
        """Return the solution of G X H + penalty X = right."""
        turned = self.left.T @ right @ self.right
        return self.left @ (turned / (self.values + penalty)) @ self.right.T


def mixed(outputs: Float64[Tensor, "out out"], share: float) -> Float64[Tensor, "out out"]:
    """Return G with a share of it replaced by its diagonal; channels worth nothing get a little."""
    diagonal = outputs.diagonal()
    floor = 1e-6 * diagonal.mean().clamp(min=torch.finfo(torch.float64).tiny)
    return (1 - share) * outputs + (share * diagonal + floor).diag()


def refine(
    start: Float64[Tensor, "out in"],
    goal: Float64[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    curvature: Curvature,
    num_iterations: int,
) -> Float64[Tensor, "out in"]:
    """Return weights on the mask with less error, by conjugate gradients on tr G D H D^T."""
    solution = start.clone()
    residual = curvature.times(goal - solution).masked_fill(~mask, 0)
    direction, size = residual.clone(), residual.square().sum()
    enough = size * 1e-10
    for _ in range(num_iterations):
        if size <= enough:
            break
        bent = curvature.times(direction).masked_fill(~mask, 0)
        step = size / (direction * bent).sum()
        solution += step * direction
        residual -= step * bent
        size, previous = residual.square().sum(), size
        direction = residual + size / previous * direction
    return solution
