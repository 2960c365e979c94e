"""What all pairs of two sets add up to, block by block: what MMDs are made of."""

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

BLOCK_SIZE = 1024
"""Rows of a matrix of pairs in memory at once: 0.4 GB beside 50,000 images."""

HALVED = 256
"""Rows of a symmetric matrix of pairs whose lower half is left out."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Of rows [n, d] and [m, d], to [n, m]."""


def kernel_sum(
    kernel: Kernel, x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]
) -> Float64[Tensor, ""]:
    """Return the sum of k(x_i, y_j) over all i and j."""
    return torch.stack([kernel(block, y).sum() for block in x.split(BLOCK_SIZE)]).sum()


def kernel_sum_within(kernel: Kernel, x: Float64[Tensor, "n d"]) -> Float64[Tensor, ""]:
    """Return the sum of k(x_i, x_j) over all i and j; k is symmetric, and only half is computed."""
    sums = []
    for start in range(0, len(x), HALVED):
        block, rest = x[start : start + HALVED], x[start + HALVED :]
        sums += [kernel(block, block).sum(), 2 * kernel(block, rest).sum()]
    return torch.stack(sums).sum()


def kernel_mean(
    kernel: Kernel, x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]
) -> Float64[Tensor, ""]:
    """Return the mean of k(x_i, y_j) over all i and j."""
    return kernel_sum(kernel, x, y) / (len(x) * len(y))


def squared_distances(
    x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]
) -> Float64[Tensor, "n m"]:
    """Return |x_i - y_j|^2 from products: fast, but what is close cancels."""
    return x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
