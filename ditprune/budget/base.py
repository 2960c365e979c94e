"""How much each layer gives, under one exact budget of the whole."""

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.saliency import Saliency, Scores
from ditprune.targets import PruneTarget, Role

ROUNDING = 1e-6
"""What a number of weights may lack to be a whole one, because a sparsity was rounded."""


@dataclass(frozen=True)
class Budget(abc.ABC):
    """The sparsity of every layer, such that exactly the fraction asked for goes altogether."""

    needs_gram: ClassVar[bool] = False
    """Whether it reads the Gram matrices of the layers' inputs."""

    protected_roles: tuple[Role, ...] = ()
    """Roles that stay dense; the other layers give more for them."""
    max_sparsity: float = 0.95
    """What no layer exceeds."""

    @abc.abstractmethod
    def wanted(self, scores: Scores, sparsity: float) -> Mapping[PruneTarget, float]:
        """Return the sparsity each unprotected layer should have; their mean is adjusted."""

    def allocate(self, scores: Scores, sparsity: float) -> dict[PruneTarget, int]:
        """Return how many weights every layer gives: together round(sparsity * weights).

        Raises:
            ValueError: if the unprotected layers cannot give so much.
        """
        sizes = {target: weight.numel() for target, weight in scores.weights.items()}
        total, free = self.demand_possible(sizes, sparsity), self.unprotected(sizes)
        if total == 0:
            return dict.fromkeys(sizes, 0)
        among_all = Among(scores.saliency, scores.weights)
        open_scores = Scores(among_all, {t: scores.weights[t] for t in free}, scores.stats)
        wanted = self.wanted(open_scores, total / sum(free.values()))
        given = apportion(wanted, free, total, self.max_sparsity)
        return {target: given.get(target, 0) for target in sizes}

    def expected(self, sizes: Mapping[PruneTarget, int], sparsity: float) -> dict[PruneTarget, int]:
        """Return how many weights every layer gives on average, as known before calibration."""
        total, free = self.demand_possible(sizes, sparsity), self.unprotected(sizes)
        if total == 0:
            return dict.fromkeys(sizes, 0)
        given = apportion(dict.fromkeys(free, total / sum(free.values())), free, total, 1.0)
        return {target: given.get(target, 0) for target in sizes}

    def unprotected(self, sizes: Mapping[PruneTarget, int]) -> dict[PruneTarget, int]:
        """Return the layers that may be pruned."""
        return {t: n for t, n in sizes.items() if t.role not in self.protected_roles}

    def demand_possible(self, sizes: Mapping[PruneTarget, int], sparsity: float) -> int:
        """Return how many weights must go, or raise a ValueError if the layers cannot give them."""
        demand_fraction(sparsity)
        total = round(sparsity * sum(sizes.values()))
        free = self.unprotected(sizes)
        if total > sum(most_of(n, self.max_sparsity) for n in free.values()):
            raise ValueError(
                f"a sparsity of {sparsity} is out of reach: {len(free)} of {len(sizes)} layers may "
                f"be pruned, to {self.max_sparsity} at most. Ask for less, protect fewer roles, or "
                "raise max_sparsity."
            )
        return total


@dataclass(frozen=True)
class Among(Saliency):
    """A saliency that sees all layers as neighbours, where only some are asked for."""

    saliency: Saliency
    weights: Mapping[PruneTarget, Float[Tensor, "out in"]]

    def beside(
        self, target: PruneTarget, weights: Mapping[PruneTarget, Float[Tensor, "out in"]]
    ) -> Saliency:
        """Return the saliency of a layer, protected neighbours included."""
        return self.saliency.beside(target, self.weights)

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Score a layer alone."""
        return self.saliency.score(weight, stats)


def demand_fraction(sparsity: float) -> None:
    """Raise a ValueError unless a sparsity is one."""
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity must be in [0, 1), the fraction to remove; got {sparsity}")


def most_of(num_weights: int, max_sparsity: float) -> int:
    """Return how many weights a layer may give."""
    return math.floor(num_weights * max_sparsity + ROUNDING)


def around(
    num_weights: int, sparsity: float, max_deviation: float, max_sparsity: float
) -> tuple[int, int]:
    """Return the least and the most that a layer may give, near the sparsity of the whole."""
    most = min(sparsity + max_deviation, max_sparsity)
    least = min(max(sparsity - max_deviation, 0.0), most)
    return most_of(num_weights, least), most_of(num_weights, most)


def apportion(
    wanted: Mapping[PruneTarget, float],
    sizes: Mapping[PruneTarget, int],
    total: int,
    max_sparsity: float,
) -> dict[PruneTarget, int]:
    """Shift all wanted sparsities by one amount, within [0, max], until exactly `total` go.

    What rounding leaves over goes to the largest remainders; of equals, to the first.
    """
    low, high = -max(wanted.values()), 1.0 - min(wanted.values())
    for _ in range(60):
        middle = (low + high) / 2
        if sum(shifted(wanted, sizes, middle, max_sparsity).values()) < total:
            low = middle
        else:
            high = middle
    exact = shifted(wanted, sizes, high, max_sparsity)
    given = {target: math.floor(amount + ROUNDING) for target, amount in exact.items()}
    by_remainder = sorted(exact, key=lambda t: round(given[t] - exact[t], 6))
    room = [t for t in by_remainder if given[t] < most_of(sizes[t], max_sparsity)]
    while (left := total - sum(given.values())) > 0:
        for target in room[:left]:
            given[target] += 1
        room = [t for t in room if given[t] < most_of(sizes[t], max_sparsity)]
    return given


def shifted(
    wanted: Mapping[PruneTarget, float],
    sizes: Mapping[PruneTarget, int],
    shift: float,
    max_sparsity: float,
) -> dict[PruneTarget, float]:
    """Return the weights that go, before rounding, if every sparsity is shifted."""
    return {
        target: min(max(sparsity + shift, 0.0), max_sparsity) * sizes[target]
        for target, sparsity in wanted.items()
    }
