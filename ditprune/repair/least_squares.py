"""Least squares over the weights that stay."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ditprune.cholesky import factorise
from ditprune.granularity import Pools
from ditprune.repair.base import LayerProblem, Repair


@dataclass(frozen=True)
class LeastSquares(Repair):
    """The best weights there are for the given mask: tr (W - W') H (W - W')^T is least.

    All rows at once, by conjugate gradients that stay on the mask (the last step of ALPS, Meng
    et al. 2024, arXiv 2406.07831). The damping pulls the weights towards the dense ones.
    """

    damping: float = 0.01
    """Of the Hessian, as a fraction of its mean diagonal; grows where that is not enough."""
    tolerance: float = 1e-4
    """The residual at which a row is done, relative to that of the mask alone. At 1e-4 the damped
    error exceeds the least by some 1e-8 of itself."""
    max_iterations: int = 500

    def __post_init__(self) -> None:
        """Refuse what cannot be solved."""
        if self.damping < 0 or self.tolerance <= 0:
            raise ValueError(
                "damping must not be negative and tolerance must be positive; "
                f"got {self.damping} and {self.tolerance}"
            )

    def solve(
        self, problem: LayerProblem, pools: Pools
    ) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
        """Return the best weights on the given mask."""
        damped = factorise(problem.hessian, self.damping)[0]
        return (
            least_squares(
                problem.weight, problem.mask, damped, self.tolerance, self.max_iterations
            ),
            problem.mask,
        )


def least_squares(
    weight: Float[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    hessian: Float64[Tensor, "in in"],
    tolerance: float,
    max_iterations: int,
) -> Float[Tensor, "out in"]:
    """Return the best weights on the mask, as far as the iterations reach.

    Every iteration lowers the error of every row, so none is worse than the mask alone.
    """
    scale = hessian.diagonal().sqrt()
    # A diagonal of ones is the cheapest preconditioner.
    curvature = hessian / scale.outer(scale)
    lost = (weight * scale).masked_fill(mask, 0)
    gained = conjugate_gradients(lost @ curvature, mask, curvature, tolerance, max_iterations)
    return (weight + gained / scale).masked_fill(~mask, 0).to(weight.dtype)


def conjugate_gradients(
    target: Float64[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    curvature: Float64[Tensor, "in in"],
    tolerance: float,
    max_iterations: int,
) -> Float64[Tensor, "out in"]:
    """Solve x C = target on the mask, for every row on its own part of C (Hestenes & Stiefel)."""
    solution = torch.zeros_like(target)
    residual = target.masked_fill(~mask, 0)
    direction, size = residual.clone(), squared_norm(residual)
    enough = size * tolerance**2
    for _ in range(max_iterations):
        running = size > enough
        if not running.any():
            break
        bent = (direction @ curvature).masked_fill(~mask, 0)
        step = quotient(size, (direction * bent).sum(1, keepdim=True), running)
        solution += step * direction
        residual -= step * bent
        size, previous = squared_norm(residual), size
        direction = residual + quotient(size, previous, running) * direction
    return solution


def squared_norm(rows: Float64[Tensor, "out in"]) -> Float64[Tensor, "out 1"]:
    """Return the sum of squares of every row."""
    return rows.square().sum(1, keepdim=True)


def quotient(
    numerator: Float64[Tensor, "out 1"],
    denominator: Float64[Tensor, "out 1"],
    running: Bool[Tensor, "out 1"],
) -> Float64[Tensor, "out 1"]:
    """Divide in the rows that are not done; 0 in those that are, where it may be 0 / 0."""
    return (numerator / denominator).where(running, 0.0)
