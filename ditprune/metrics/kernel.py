"""What all pairs of two sets add up to, block by block: what MMDs are made of."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

BLOCK_SIZE = 256
"""Rows of a matrix of pairs in memory at once: few, so that the memory is not asked for anew."""


@runtime_checkable
class Rows(Protocol):
    """A set of points: a tensor [n, d], or several tensors of as many rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


Set = TypeVar("Set", bound=Rows)
Kernel = Callable[[Set, Set], Tensor]
"""Of sets of n and m points, to [n, m]."""


def kernel_sum(kernel: Kernel[Set], x: Set, y: Set) -> Float64[Tensor, ""]:
    """Return the sum of k(x_i, y_j) over all i and j."""
    starts = range(0, len(x), BLOCK_SIZE)
    return torch.stack([kernel(x[at : at + BLOCK_SIZE], y).sum() for at in starts]).sum()


def kernel_sum_of_pairs(kernel: Kernel[Set], x: Set) -> Float64[Tensor, ""]:
    """Return the sum of k(x_i, x_j) over all i other than j.

    The kernel is symmetric, and only half of it is computed.
    """
    sums = []
    for start in range(0, len(x), BLOCK_SIZE):
        block, rest = x[start : start + BLOCK_SIZE], x[start + BLOCK_SIZE :]
        among = kernel(block, block)
        sums += [among.sum() - among.trace(), 2 * kernel(block, rest).sum()]
    return torch.stack(sums).sum()


def kernel_mean(kernel: Kernel[Set], x: Set, y: Set) -> Float64[Tensor, ""]:
    """Return the mean of k(x_i, y_j) over all i and j."""
    return kernel_sum(kernel, x, y) / (len(x) * len(y))


def squared_distances(
    x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]
) -> Float64[Tensor, "n m"]:
    """Return |x_i - y_j|^2 from products: fast, but what is close cancels."""
    return x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
