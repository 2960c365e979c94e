"""The whole method on one screen."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from diffusers import SchedulerMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ditprune.activations import ActivationStats, Stats
from ditprune.alpha import settle
from ditprune.blocks import calibrate_blocks
from ditprune.calibration import Weights, calibrate
from ditprune.decision import Evidence, decide, demand_attainable, scores_of
from ditprune.distributed import all_cores, broadcast_, rank
from ditprune.families import Batch, Family
from ditprune.granularity import Pools
from ditprune.importance import Importance, ImportanceMeasure
from ditprune.layers import all_or_nothing, bias_of, install_, target_weights
from ditprune.masks import MaskSet, weight_matrix
from ditprune.recipe import Recipe
from ditprune.repair import Repaired
from ditprune.repair.base import relative_error
from ditprune.targets import PruneTarget


class LayerErrors(NamedTuple):
    """What a layer's outputs lost on the calibration samples, relative to their energy."""

    masked: float
    """By the mask alone."""
    repaired: float


class PrunedLayer(NamedTuple):
    """What pruning did to one layer."""

    target: PruneTarget
    mask: Bool[Tensor, "out in"]
    errors: LayerErrors | None
    """None where its Gram matrix was not known."""


@dataclass(frozen=True)
class Outcome:
    """What pruning did."""

    masks: MaskSet
    errors: Mapping[PruneTarget, LayerErrors]
    """Of the layers whose Gram matrix was known."""


def prune(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    family: Family,
    recipe: Recipe,
    scheduler: SchedulerMixin | None = None,
) -> Outcome:
    """Prune the target weights of `model` in place, and repair what the recipe says.

    In a process group every rank must call this, with the same batches: each takes its share of
    the samples, and all get the same model.

    Args:
        model: any module whose layers the family finds.
        batches: calibration samples.
        family: where the layers are and how to call the model once.
        recipe: what is pruned how.
        scheduler: of the sampling to come; only recipes with importance need it.

    Raises:
        ValueError: if a weight or an activation is not finite, a layer is missing or never
            reached, the sparsity is impossible, or there are no batches. The model is untouched
            then, and after any other error.
    """
    weights = target_weights(model, family)
    demand_attainable(weights, recipe.granularity, recipe.sparsity, recipe.budget)
    batches = list(batches)
    recipe = settle(model, batches, family, weights, recipe)
    evidence = observe(model, batches, family, weights, recipe, scheduler)
    pools = decide(evidence, weights, recipe)
    return carry_out_(model, batches, family, weights, evidence, pools, recipe)


def observe(
    model: nn.Module,
    batches: Iterable[Batch],
    family: Family,
    weights: Weights,
    recipe: Recipe,
    scheduler: SchedulerMixin | None = None,
) -> Evidence:
    """Run the calibration samples through the dense model."""
    seen = replace(recipe.observation, with_gram=recipe.decides_by_gram)
    return Evidence(
        calibrate(model, batches, family, weights, seen),
        measure_importance(model, batches, family, weights, recipe.importance, scheduler),
    )


def measure_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    family: Family,
    weights: Weights,
    importance: ImportanceMeasure | None,
    scheduler: SchedulerMixin | None,
) -> dict[PruneTarget, Importance]:
    """Follow sampling trajectories, if that is asked for."""
    if importance is None:
        return {}
    if scheduler is None:
        raise ValueError(
            "importance is measured along sampling trajectories, which take the model's scheduler; "
            "give one (scheduler=..., or an attribute of the LightningModule), or importance: null"
        )
    return importance.measure(model, batches, family, weights, scheduler)


@torch.no_grad()
def carry_out_(
    model: nn.Module,
    batches: Iterable[Batch],
    family: Family,
    weights: Weights,
    evidence: Evidence,
    pools: Mapping[PruneTarget, Pools],
    recipe: Recipe,
) -> Outcome:
    """Keep the winners of every pool and repair them; layer by layer, where that is needed.

    If that fails, the model is as it was: meanwhile the CPU's memory holds its weights too.
    """
    known = stats_by_block(model, batches, family, weights, evidence, recipe)
    with all_or_nothing(model, weights), closing(known):
        pruned = {
            layer.target: layer
            for stats in known
            for layer in prune_layers_(
                model, weights, replace(evidence, stats=stats), pools, recipe
            )
        }
    masks = MaskSet({target: pruned[target].mask for target in weights})
    return Outcome(masks, {t: layer.errors for t, layer in pruned.items() if layer.errors})


def prune_layers_(
    model: nn.Module,
    weights: Weights,
    evidence: Evidence,
    pools: Mapping[PruneTarget, Pools],
    recipe: Recipe,
) -> Iterator[PrunedLayer]:
    """Prune the layers of which something is known, one by one, as they are asked for."""
    scores, stats = scores_of(evidence, weights, recipe), evidence.stats
    chosen = {target: pools[target].keep(scores[target]) for target in stats}
    for target, mask in chosen.items():
        importance = evidence.importance.get(target)
        repaired = repair_layer(model, target, mask, stats[target], importance, pools, recipe)
        errors = None
        if stats[target].gram is not None:
            errors = layer_errors(weights[target], mask, repaired, stats[target])
        install_(model, target, repaired)
        yield PrunedLayer(target, repaired.mask, errors)


def stats_by_block(
    model: nn.Module,
    batches: Iterable[Batch],
    family: Family,
    weights: Weights,
    evidence: Evidence,
    recipe: Recipe,
) -> Generator[Stats, None, None]:
    """Yield what is known of all layers at once, or else observe block after block."""
    has_gram = all(statistic.gram is not None for statistic in evidence.stats.values())
    if not recipe.sequential and (has_gram or not recipe.needs_gram):
        yield evidence.stats
    else:
        seen = replace(recipe.observation, with_gram=recipe.needs_gram)
        yield from calibrate_blocks(model, batches, family, weights, seen, follow=recipe.follow)


def repair_layer(
    model: nn.Module,
    target: PruneTarget,
    mask: Bool[Tensor, "out in"],
    stats: ActivationStats,
    importance: Importance | None,
    pools: Mapping[PruneTarget, Pools],
    recipe: Recipe,
) -> Repaired:
    """Return a layer as the recipe repairs it: the same on every rank, to the bit."""
    weight = weight_matrix(model, target)
    masked = Repaired(weight.masked_fill(~mask, 0), mask, weight.new_zeros(len(weight)))
    if recipe.repair is None:
        return masked
    if rank() == 0:
        has_bias = bias_of(model, target) is not None
        with all_cores():
            masked = recipe.repair.repair(weight, mask, stats, pools[target], has_bias, importance)
    broadcast_(masked)
    return masked


def layer_errors(
    weight: Float[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    repaired: Repaired,
    stats: ActivationStats,
) -> LayerErrors:
    """Return what the mask alone, and the mask with its repair, cost the layer's outputs."""
    masked = repaired._replace(
        weight=weight.masked_fill(~mask, 0), bias_shift=torch.zeros_like(repaired.bias_shift)
    )
    return LayerErrors(
        relative_error(weight, masked, stats), relative_error(weight, repaired, stats)
    )
