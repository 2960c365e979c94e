"""What the kept weights do about those that went."""

import abc
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.cholesky import factorise
from ditprune.granularity import Pools

GOAL_DAMPING = 0.001
"""Of H, as a fraction of its mean diagonal: inputs too few to tell leave the weights dense."""


class Repaired(NamedTuple):
    """A layer after its repair."""

    weight: Float[Tensor, "out in"]
    """Zero where the mask takes."""
    mask: Bool[Tensor, "out in"]
    bias_shift: Float[Tensor, " out"]
    """To add to the layer's bias: zero unless the repair corrects it."""


class LayerProblem(NamedTuple):
    """What a repair minimises: tr G (W - W') H (W - W')^T over W', zero outside a mask."""

    weight: Float[Tensor, "out in"]
    """W, in float32: the dense weights, or those whose outputs are the dense model's."""
    mask: Bool[Tensor, "out in"]
    """Where to start from: True = keep."""
    stats: ActivationStats
    hessian: Float64[Tensor, "in in"]
    """H: the second moment of the inputs, or their covariance if the bias will be corrected;
    empty unless the repair needs it."""
    outputs: Float64[Tensor, "out out"] | None = None
    """G: how errors of the outputs are weighed; None is the identity."""


@dataclass(frozen=True)
class Repair(abc.ABC):
    """Changes the weights that stay, and for some the mask, such that the layer's outputs stay.

    The error that counts is E |W x - W' x - b|^2 = tr (W - W') H (W - W')^T, with H = E x x^T.
    With a bias b to choose, the best is b = (W - W') E x, and H becomes the covariance of x: so
    every repair corrects the bias by solving with another H. Where the inputs x are a pruned
    model's and d the dense model's, the goal W d is that of the weights W E[d x^T] H^-1.
    """

    needs_gram: ClassVar[bool] = True

    correct_bias: bool = False
    """Also correct the biases of the layers that have one."""

    @abc.abstractmethod
    def solve(
        self, problem: LayerProblem, pools: Pools
    ) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
        """Return the repaired weights, zero where the mask takes, and their mask.

        A mask that moves must come back to the pools, by `pools.keep`.
        """

    def repair(
        self,
        weight: Float[Tensor, "out in"],
        mask: Bool[Tensor, "out in"],
        stats: ActivationStats,
        pools: Pools,
        has_bias: bool,
        outputs: Float64[Tensor, "out out"] | None = None,
    ) -> Repaired:
        """Return the repaired weights in the dtype of the dense ones, their mask, and the bias."""
        centred = self.correct_bias and has_bias
        hessian = hessian_of(stats, centred) if self.needs_gram else stats.sum.new_zeros(0, 0)
        goal = weight.float() if stats.cross is None else goal_of(weight, stats, centred).float()
        solved, moved = self.solve(LayerProblem(goal, mask, stats, hessian, outputs), pools)
        repaired = solved.masked_fill(~moved, 0).to(weight.dtype)
        shift = weight.new_zeros(len(weight))
        if centred:
            wanted = weight.double() @ (stats.mean() if stats.cross is None else stats.dense_mean())
            shift = (wanted - repaired.double() @ stats.mean()).to(weight.dtype)
        return Repaired(repaired, moved, shift)


def goal_of(
    weight: Float[Tensor, "out in"], stats: ActivationStats, centred: bool
) -> Float64[Tensor, "out in"]:
    """Return the weights that come nearest to the dense model's outputs: W E[d x^T] H^-1.

    Damped towards the dense weights.
    """
    cross = stats.cross_moment()
    if centred:
        cross = cross - stats.dense_mean().outer(stats.mean())
    hessian = hessian_of(stats, centred)
    damped, factor = factorise(hessian, GOAL_DAMPING)
    right = weight.double() @ (cross + damped - hessian)
    return torch.cholesky_solve(right.T, factor).T


def hessian_of(stats: ActivationStats, centred: bool) -> Float64[Tensor, "in in"]:
    """Return E x x^T, or the covariance of x."""
    if not centred:
        return stats.second_moment()
    mean = stats.mean()
    return stats.second_moment() - mean.outer(mean)


def relative_error(
    weight: Float[Tensor, "out in"], repaired: Repaired, stats: ActivationStats
) -> float:
    """Return E |W x - W' x - b|^2 / E |W x|^2: 0 is no error, 1 that of no layer at all."""
    hessian = stats.second_moment()
    size = quadratic(weight, hessian)
    lost = weight.double() - repaired.weight.double()
    shift = repaired.bias_shift.double()
    cross = 2 * shift @ (lost @ stats.mean()) - shift @ shift
    return (quadratic(lost, hessian) - cross.item()) / size if size > 0 else 0.0


def quadratic(weight: Float[Tensor, "out in"], hessian: Float64[Tensor, "in in"]) -> float:
    """Return tr W H W^T: the mean square of W x."""
    return (weight.double() @ hessian).mul(weight).sum().item()
