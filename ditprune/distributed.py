"""The few things that ranks must agree on. Without a process group there is one rank."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float64
from torch import Tensor

T = TypeVar("T")


def is_distributed() -> bool:
    """Tell whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def leave_group() -> None:
    """Leave the process group, if there is one: its threads must end before the interpreter does.

    Lightning leaves that to the end of the process, which now and then it then aborts.
    """
    if is_distributed():
        dist.destroy_process_group()


def rank() -> int:
    """Return the index of this process."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def share_of_rank(items: Iterable[T]) -> Iterator[T]:
    """Yield every world_size-th item, from the rank-th on: nothing twice, nothing left out."""
    return (item for index, item in enumerate(items) if index % world_size() == rank())


def sum_over_ranks(sums: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """Return the sum of the tensors of all ranks; every rank must call this."""
    if is_distributed():
        dist.all_reduce(sums)
    return sums


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


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors by those of the first rank; every rank must call this."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


@contextmanager
def all_cores() -> Iterator[None]:
    """Use as many threads as there are cores, however many processes share them.

    Linear algebra rounds differently on another number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
