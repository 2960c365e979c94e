"""What is known of a model, and what is decided from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.activations import ActivationStats, Stats
from ditprune.budget import Budget, Uniform
from ditprune.calibration import Weights
from ditprune.granularity import Granularity, Pools
from ditprune.granularity.base import shape_of
from ditprune.importance import Importance, in_image_units
from ditprune.recipe import Recipe
from ditprune.saliency import Saliency, Scores
from ditprune.targets import PruneTarget


@dataclass(frozen=True)
class Evidence:
    """What the calibration tells of the dense model."""

    stats: Stats
    importance: Mapping[PruneTarget, Importance] = field(default_factory=dict)
    """Empty where it was not measured."""


def demand_attainable(
    weights: Weights, granularity: Granularity, sparsity: float, budget: Budget
) -> None:
    """Raise a ValueError, before calibration, if the layers cannot give what is asked for."""
    if granularity.one_sparsity and not isinstance(budget, Uniform):
        raise ValueError(
            f"{granularity} takes the same fraction of every layer, and {type(budget).__name__} "
            "gives each its own: use the budget Uniform"
        )
    expected = budget.expected({t: weight.numel() for t, weight in weights.items()}, sparsity)
    for target, weight in weights.items():
        granularity.attainable(target, shape_of(weight), expected[target])


def decide(evidence: Evidence, weights: Weights, recipe: Recipe) -> dict[PruneTarget, Pools]:
    """Choose how much each layer gives, and who competes with whom there."""
    scores = scores_of(evidence, weights, recipe)
    return recipe.granularity.pools(scores, recipe.budget.allocate(scores, recipe.sparsity))


def decide_by_shapes(weights: Weights, recipe: Recipe) -> dict[PruneTarget, Pools] | None:
    """Choose the same without any data, from shapes alone; None if that needs scores.

    The scores are tensors without memory: whoever looks into one of them raises.
    """
    shapes = {target: weight.to("meta") for target, weight in weights.items()}
    nothing = dict.fromkeys(shapes, ActivationStats(0))
    try:
        return decide(Evidence(nothing), shapes, replace(recipe, saliency=Unknown()))
    except (RuntimeError, TypeError):
        return None


class Unknown(Saliency):
    """Scores that nobody knows."""

    def score(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Return a matrix of the right shape."""
        return torch.empty_like(weight, dtype=torch.float32, device="meta")


def scores_of(evidence: Evidence, weights: Weights, recipe: Recipe) -> Scores:
    """Return the scores of all weights, in units of the images if importance is known."""
    return Scores(recipe.saliency, in_image_units(weights, evidence.importance), evidence.stats)
