"""N of every M weights stay, as sparse tensor cores want it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.granularity.base import Granularity, Pools, Runs, Shape, shape_of
from ditprune.targets import PruneTarget


@dataclass(frozen=True)
class NofM(Granularity):
    """Of every M consecutive inputs of a row, N stay (Mishra et al. 2021, arXiv 2104.08378).

    NVIDIA's sparse tensor cores run 2:4. The sparsity must be 1 - N/M in every layer.
    """

    one_sparsity: ClassVar[bool] = True

    num_kept: int = 2
    """N, of every group."""
    group_size: int = 4
    """M."""

    def __post_init__(self) -> None:
        """Refuse groups that lose nothing or everything."""
        if not 1 <= self.num_kept < self.group_size:
            raise ValueError(
                "num_kept must be at least 1 and below group_size, as in 2 of 4; got "
                f"{self.num_kept} of {self.group_size}"
            )

    @property
    def name(self) -> str:
        """Return `2:4`."""
        return f"{self.num_kept}:{self.group_size}"

    @property
    def sparsity(self) -> float:
        """Return the fraction that goes, of every layer."""
        return 1 - self.num_kept / self.group_size

    def label(self, target: PruneTarget) -> str:
        """Return `2:4`."""
        return self.name

    def attainable(self, target: PruneTarget, shape: Shape, num_pruned: int) -> int:
        """Return the number itself: N:M has no choice.

        Raises:
            ValueError: if the rows cannot be cut into groups, or another number is to go.
        """
        rows, inputs = shape
        if inputs % self.group_size:
            raise ValueError(
                f"{target.name} has {inputs} inputs, which groups of {self.group_size} do not "
                f"divide: leave it out with ignore={target.name!r} of the family"
            )
        only = rows * inputs * (self.group_size - self.num_kept) // self.group_size
        if num_pruned != only:
            raise ValueError(
                f"{self.name} removes {only} of the {rows * inputs} weights of {target.name}, and "
                f"{num_pruned} are to go: set sparsity: {self.sparsity}, "
                "the same for every layer"
            )
        return num_pruned

    def pools(
        self,
        scores: Mapping[PruneTarget, Float[Tensor, "out in"]],
        num_pruned: Mapping[PruneTarget, int],
    ) -> dict[PruneTarget, Pools]:
        """Return a pool for each group."""
        for target, score in scores.items():
            self.attainable(target, shape_of(score), num_pruned[target])
        one = torch.tensor([self.num_kept])
        return {
            target: Runs(self.name, one.expand(score.numel() // self.group_size))
            for target, score in scores.items()
        }
