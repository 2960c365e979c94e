"""The few things that ranks must agree on. Without a process group there is one rank."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch.distributed as dist
from jaxtyping import Float64
from torch import Tensor

T = TypeVar("T")


def is_distributed() -> bool:
    """Tell whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return the index of this process."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def share_of_rank(items: Iterable[T]) -> Iterator[T]:
    """Yield every world_size-th item, from the rank-th on: nothing twice, nothing left out."""
    return (item for index, item in enumerate(items) if index % world_size() == rank())


def sum_over_ranks(vector: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Return the sum of the vectors of all ranks; every rank must call this."""
    if is_distributed():
        dist.all_reduce(vector)
    return vector


def on_first_rank(compute: Callable[[], T]) -> T:
    """Compute something on the first rank alone, and return it on every rank."""
    results: list[Any] = [compute() if rank() == 0 else None]
    if is_distributed():
        dist.broadcast_object_list(results)
    result: T = results[0]
    return result


def barrier() -> None:
    """Wait for all ranks."""
    if is_distributed():
        dist.barrier()
