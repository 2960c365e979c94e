"""What a weight is worth."""

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.targets import PruneTarget


class Saliency(abc.ABC):
    """How much a weight matters. Higher means: keep; no score is negative."""

    needs_gram: ClassVar[bool] = False
    """Whether it reads the Gram matrix of the inputs."""

    @abc.abstractmethod
    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Score every weight of one layer, in float32, from the weights and what flowed in."""

    def beside(
        self, target: PruneTarget, weights: Mapping[PruneTarget, Float[Tensor, "out in"]]
    ) -> "Saliency":
        """Return the saliency that scores a layer among others; most look at it alone."""
        return self


@dataclass(frozen=True)
class Scores(Mapping[PruneTarget, Tensor]):
    """The scores of every layer, computed when asked for: one layer in memory at a time."""

    saliency: Saliency
    weights: Mapping[PruneTarget, Float[Tensor, "out in"]]
    stats: Mapping[PruneTarget, ActivationStats]

    def __getitem__(self, target: PruneTarget) -> Float[Tensor, "out in"]:
        """Score one layer."""
        saliency = self.saliency.beside(target, self.weights)
        return saliency.score(self.weights[target], self.stats[target])

    def __iter__(self) -> Iterator[PruneTarget]:
        """Iterate over the layers of which something is known."""
        return (target for target in self.weights if target in self.stats)

    def __len__(self) -> int:
        """Return the number of those layers."""
        return sum(target in self.stats for target in self.weights)
