"""SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): optimal updates, column by column."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ditprune.cholesky import inverse_factor
from ditprune.granularity import Pools, Runs
from ditprune.granularity.base import keep_top
from ditprune.repair.base import LayerProblem, Repair

Choose = Callable[[Float[Tensor, "out width"], int], Bool[Tensor, "out width"]]
"""Returns which weights stay, by the scores of some columns and the index of the first."""


@dataclass(frozen=True)
class SparseGPT(Repair):
    """From left to right, what a column loses is made up for by those right of it (Alg. 1).

    With U^T U = H^-1, clearing w_j adds (w_j / U_jj)^2 to the error and moves the columns k > j
    by -w_j / U_jj U_jk. The same number is the score that chooses the mask, block of columns by
    block of columns, from the weights as they are by then.

    Every block gives the same share of each pool: of the layer (as published), or of each row.
    N:M groups are decided one by one, when their first column is reached. Pools that are not
    runs of weights have no share in a block: a first sweep, as if the layer were one pool, finds
    the scores that decide them, and a second one starts anew on the mask that they make.
    """

    damping: float = 0.01
    """Of the Hessian, as a fraction of its mean diagonal; grows where that is not enough."""
    block_size: int = 128
    """Columns whose mask is chosen together, and after which all the others are updated."""
    adaptive: bool = True
    """Choose the mask; False updates the weights that the given one keeps."""

    def __post_init__(self) -> None:
        """Refuse blocks without columns."""
        if self.block_size < 1 or self.damping < 0:
            raise ValueError(
                "block_size must be positive and damping must not be negative; "
                f"got {self.block_size} and {self.damping}"
            )

    def solve(
        self, problem: LayerProblem, pools: Pools
    ) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
        """Return the weights after the sweep, and the mask it chose or was given."""
        weight, mask, hessian = problem.weight, problem.mask, problem.hessian
        factor = inverse_factor(hessian, self.damping).float()
        width, block_size = self.block_size, self.block_size
        if not self.adaptive:
            choose = as_given(mask)
        elif not isinstance(pools, Runs):
            choose = as_given(pools.keep(first_scores(weight, mask, factor, block_size)))
        elif width_of(pools, weight) < weight.shape[1]:
            width = width_of(pools, weight)
            block_size = max(block_size // width, 1) * width
            choose = by_group(pools.num_kept.reshape(len(weight), -1), width)
        else:
            choose = by_share(pools.num_kept, weight)
        return sweep(weight, factor, choose, width, block_size)


def width_of(pools: Pools, weight: Float[Tensor, "out in"]) -> int:
    """Return among how many neighbours in a row a weight can be exchanged: M, or all inputs."""
    if not isinstance(pools, Runs):
        return weight.shape[1]
    return min(weight.numel() // len(pools.num_kept), weight.shape[1])


def as_given(mask: Bool[Tensor, "out in"]) -> Choose:
    """Keep what a mask keeps."""
    return lambda score, start: mask[:, start : start + score.shape[1]]


def by_group(num_kept: Int64[Tensor, "out groups"], width: int) -> Choose:
    """Keep so many of each group of neighbours."""
    return lambda score, start: keep_top(score, num_kept[:, start // width].to(score.device))


def by_share(num_kept: Int64[Tensor, " pools"], weight: Float[Tensor, "out in"]) -> Choose:
    """Take the same share of each block of columns.

    Rounded such that the blocks up to any column have given the floor of what they owe, which
    makes the totals exact.
    """
    num_inputs, size = weight.shape[1], weight.numel() // len(num_kept)

    def choose(score: Tensor, start: int) -> Tensor:
        units = score.reshape(len(num_kept), -1)
        owed = [(size - num_kept) * end // num_inputs for end in (start, start + score.shape[1])]
        vacant = units.shape[1] - (owed[1] - owed[0])
        return keep_top(units, vacant.to(score.device)).reshape(score.shape)

    return choose


def first_scores(
    weight: Float[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    factor: Float[Tensor, "in in"],
    block_size: int,
) -> Float[Tensor, "out in"]:
    """Return every weight's score, as it was when a sweep over one pool came to it."""
    scores = torch.empty_like(weight)
    decide = by_share(mask.sum().reshape(1), weight)

    def choose(score: Tensor, start: int) -> Tensor:
        scores[:, start : start + score.shape[1]] = score
        return decide(score, start)

    sweep(weight, factor, choose, block_size, block_size)
    return scores


def sweep(
    weight: Float[Tensor, "out in"],
    factor: Float[Tensor, "in in"],
    choose: Choose,
    width: int,
    block_size: int,
) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
    """Clear the columns one after another; those beyond a block learn of it when it is done."""
    columns = weight.T.clone(memory_format=torch.contiguous_format)
    keep = torch.ones_like(columns, dtype=torch.bool)
    for start in range(0, len(columns), block_size):
        end = min(start + block_size, len(columns))
        inside = slice(start, end)
        errors = sweep_block_(
            columns[inside], keep[inside], factor[inside, inside], choose, width, start
        )
        columns[end:].addmm_(factor[inside, end:].T, errors, alpha=-1)
    return columns.masked_fill(~keep, 0).T.contiguous(), keep.T.contiguous()


def sweep_block_(
    columns: Float[Tensor, "block out"],
    keep: Bool[Tensor, "block out"],
    factor: Float[Tensor, "block block"],
    choose: Choose,
    width: int,
    start: int,
) -> Float[Tensor, "block out"]:
    """Choose and clear columns in place, and return w_j / U_jj where they were cleared."""
    errors = torch.empty_like(columns)
    diagonal = factor.diagonal().unsqueeze(1)
    for j in range(len(columns)):
        if j % width == 0:
            group = slice(j, j + width)
            score = (columns[group] / diagonal[group]).square()
            keep[group] = choose(score.T.contiguous(), start + j).T
        errors[j] = (columns[j] / diagonal[j]).masked_fill(keep[j], 0)
        columns[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
    return errors
