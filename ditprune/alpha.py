"""The balance of weight and activation, chosen by what the pruned model predicts.

|W|^m RMS(X)^n ranks like |W| RMS(X)^alpha with alpha = n / m: one number decides.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from ditprune.calibration import Weights, calibrate, single_samples
from ditprune.decision import Evidence, decide, scores_of
from ditprune.families import Batch, Family
from ditprune.layers import restoring
from ditprune.masks import MaskSet
from ditprune.prediction import Judge
from ditprune.recipe import Recipe
from ditprune.saliency import Energy
from ditprune.saliency.energy import SearchedEnergy

HELD_OUT = 4
"""Every so many-th calibration sample judges, and is not calibrated with."""


class AlphaCurve(NamedTuple):
    """What the pruned model predicts wrongly, for each balance."""

    alphas: tuple[float, ...]
    errors: Float64[Tensor, "alphas samples"]
    """|f_pruned - f|^2 / |f|^2 of every held-out sample."""

    def means(self) -> list[float]:
        """Return the mean error of each balance."""
        return self.errors.mean(1).tolist()

    def chosen(self) -> float:
        """Return the balance nearest to the paper's 1/2 among those as good as the best.

        As good is: not worse than the best by more than the standard error of the difference,
        sample by sample (the one-standard-error rule, Breiman et al. 1984, paired).
        """
        best = self.errors[int(self.errors.mean(1).argmin())]
        worse = self.errors - best
        deviation = worse.std(1) / worse.shape[1] ** 0.5
        good = [a for a, w, d in zip(self.alphas, worse.mean(1), deviation, strict=True) if w <= d]
        return min(good, key=lambda alpha: abs(alpha - 0.5))


def settle(
    model: nn.Module, batches: Iterable[Batch], family: Family, weights: Weights, recipe: Recipe
) -> Recipe:
    """Return the recipe with its balance chosen, if it leaves that open; the model is unchanged."""
    if not isinstance(recipe.saliency, SearchedEnergy):
        return recipe
    curve = alpha_curve(model, batches, family, weights, recipe, recipe.saliency.alphas)
    return replace(recipe, saliency=Energy(1.0, curve.chosen()))


@torch.no_grad()
def alpha_curve(
    model: nn.Module,
    batches: Iterable[Batch],
    family: Family,
    weights: Weights,
    recipe: Recipe,
    alphas: Sequence[float],
) -> AlphaCurve:
    """Return the prediction errors of the masks alone, on samples that were not calibrated with.

    Raises:
        ValueError: if there are too few samples to hold one out twice.
    """
    samples = list(single_samples(batches))
    held_out, others = samples[::HELD_OUT], [s for i, s in enumerate(samples) if i % HELD_OUT]
    if len(held_out) < 2:
        raise ValueError(
            f"the balance is searched on every {HELD_OUT}th calibration sample, and there are "
            f"{len(samples)}: give more, or choose Energy's exponents yourself"
        )
    stats = calibrate(model, others, family, weights, recipe.observation)
    judge = Judge.of(model, held_out, family, next(iter(weights.values())))
    errors = []
    for alpha in alphas:
        tried = replace(recipe, saliency=Energy(1.0, alpha), repair=None)
        with restoring(model, weights):
            masks(weights, Evidence(stats), tried).apply_(model)
            errors.append(judge.errors(model))
    return AlphaCurve(tuple(alphas), torch.stack(errors))


def masks(weights: Weights, evidence: Evidence, recipe: Recipe) -> MaskSet:
    """Return the masks of a recipe without repair."""
    scores, pools = scores_of(evidence, weights, recipe), decide(evidence, weights, recipe)
    return MaskSet({target: pools[target].keep(scores[target]) for target in weights})
