"""Factors of a Hessian that may be singular.

Channels into which nothing flows have no curvature, fewer tokens than channels leave some
directions without any, and rounding can push small eigenvalues below zero.
"""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

NUM_ATTEMPTS = 16
SMALLEST_DAMPING = 1e-8
"""Where the escalation begins if no damping was asked for."""
SMALL = 128
"""Triangles that are inverted at once."""
DEAD_CURVATURE = 1e-9
"""Of dead channels, as a fraction of the mean of the others: their weights count least."""


def alive(hessian: Float64[Tensor, "in in"]) -> Bool[Tensor, " in"]:
    """Tell into which channels something flows. Rounding makes some covariances negative."""
    return hessian.diagonal() > 0


def factorise(
    hessian: Float64[Tensor, "in in"], damping: float
) -> tuple[Float64[Tensor, "in in"], Float64[Tensor, "in in"]]:
    """Return H, damped until it is positive definite, and its lower Cholesky factor.

    Dead channels are cut off from the others and get next to no curvature, so that nothing moves
    their weights, every score has them go first, and nothing divides by zero.

    Args:
        hessian: the second moments or covariances of the inputs.
        damping: what to add to the diagonal, as a fraction of its mean; ten times as much
            whenever that is not enough.

    Raises:
        ValueError: if H is not finite, or no damping helps.
    """
    if not hessian.isfinite().all():
        raise ValueError("the Hessian is not finite: NaN or infinite activations flowed in")
    living = alive(hessian)
    scale = hessian.diagonal()[living].mean() if living.any() else hessian.new_ones(())
    cut = hessian.where(living & living.unsqueeze(1), 0.0)
    for _ in range(NUM_ATTEMPTS):
        damped = cut + (damping * scale).where(living, DEAD_CURVATURE * scale).diag()
        factor, failure = torch.linalg.cholesky_ex(damped)
        if not failure and factor.isfinite().all():
            return damped, factor
        damping = max(10 * damping, SMALLEST_DAMPING)
    raise ValueError(f"no damping up to {damping} of the mean diagonal makes H positive definite")


def inverse_factor(hessian: Float64[Tensor, "in in"], damping: float) -> Float64[Tensor, "in in"]:
    """Return the upper U with U^T U = H^-1, damped: the factor of SparseGPT's column updates.

    With the channels in reverse, H = R R^T for an upper R; then U = R^-1. That is one
    factorisation, where inverting H first would take two and lose half of the digits.
    """
    reversed_factor = factorise(hessian.flip(0, 1), damping)[1].flip(0, 1)
    return inverse_of_upper(reversed_factor)


def inverse_of_upper(factor: Float64[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """Invert a triangle by its halves: a third of the work of solving for the identity."""
    inverse = torch.zeros_like(factor)
    if len(factor) <= SMALL:
        return torch.linalg.solve_triangular(factor, inverse.fill_diagonal_(1), upper=True)
    first, last = slice(0, len(factor) // 2), slice(len(factor) // 2, None)
    inverse[first, first] = inverse_of_upper(factor[first, first])
    inverse[last, last] = inverse_of_upper(factor[last, last])
    between = torch.linalg.solve_triangular(factor[first, first], factor[first, last], upper=True)
    inverse[first, last] = -torch.linalg.solve_triangular(
        factor[last, last], between, upper=True, left=False
    )
    return inverse
