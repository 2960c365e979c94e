"""Correct the biases, and nothing else (Nagel et al. 2019, arXiv 1906.04721, Sec. 4.2)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from ditprune.granularity import Pools
from ditprune.repair.base import LayerProblem, Repair


@dataclass(frozen=True)
class BiasCorrection(Repair):
    """Mask and weights stay; the bias takes over what the pruned weights gave on average."""

    needs_gram: ClassVar[bool] = False

    correct_bias: bool = True

    def solve(
        self, problem: LayerProblem, pools: Pools
    ) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
        """Return the masked weights and their mask."""
        return problem.weight.masked_fill(~problem.mask, 0), problem.mask
