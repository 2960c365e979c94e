"""The whole method on one screen."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from diffusers import SchedulerMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ditprune.activations import ActivationStats, Stats
from ditprune.blocks import calibrate_blocks
from ditprune.budget import Budget
from ditprune.calibration import Weights, calibrate
from ditprune.distributed import all_cores, broadcast_, rank
from ditprune.families import Batch, Family
from ditprune.granularity import Granularity, Pools
from ditprune.granularity.base import shape_of
from ditprune.importance import Importance, TrajectoryImportance, in_image_units
from ditprune.masks import MaskSet, weight_matrix
from ditprune.recipe import Recipe
from ditprune.repair import Repaired
from ditprune.repair.base import relative_error
from ditprune.saliency import Scores
from ditprune.targets import PruneTarget


class LayerErrors(NamedTuple):
    """What a layer's outputs lost on the calibration samples, relative to their energy."""

    masked: float
    """By the mask alone."""
    repaired: float


@dataclass(frozen=True)
class Evidence:
    """What the calibration tells of the dense model."""

    stats: Stats
    importance: Mapping[PruneTarget, Importance] = field(default_factory=dict)
    """Empty where it was not measured."""


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
            then.
    """
    weights = target_weights(model, family)
    demand_attainable(weights, recipe.granularity, recipe.sparsity, recipe.budget)
    batches = list(batches)
    evidence = observe(model, batches, family, weights, recipe, scheduler)
    pools = decide(evidence, weights, recipe)
    return carry_out_(model, batches, family, weights, evidence, pools, recipe)


def target_weights(model: nn.Module, family: Family) -> Weights:
    """Return the weights of the family's targets, which share the model's memory."""
    weights = {target: weight_matrix(model, target) for target in family.targets(model)}
    bad = [target.name for target, weight in weights.items() if not weight.isfinite().all()]
    if bad:
        raise ValueError(
            f"the model has NaN or infinite weights in {', '.join(bad[:8])}; the checkpoint is "
            "damaged, or its dtype too narrow"
        )
    return weights


def demand_attainable(
    weights: Weights, granularity: Granularity, sparsity: float, budget: Budget
) -> None:
    """Raise a ValueError, before calibration, if the layers cannot give what is asked for."""
    budget.demand_possible({t: weight.numel() for t, weight in weights.items()}, sparsity)
    for target, weight in weights.items():
        granularity.attainable(target, shape_of(weight), round(weight.numel() * sparsity))


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
    importance: TrajectoryImportance | None,
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


def decide(evidence: Evidence, weights: Weights, recipe: Recipe) -> dict[PruneTarget, Pools]:
    """Choose how much each layer gives, and who competes with whom there."""
    scores = scores_of(evidence, weights, recipe)
    return recipe.granularity.pools(scores, recipe.budget.allocate(scores, recipe.sparsity))


def scores_of(evidence: Evidence, weights: Weights, recipe: Recipe) -> Scores:
    """Return the scores of all weights, in units of the images if importance is known."""
    return Scores(recipe.saliency, in_image_units(weights, evidence.importance), evidence.stats)


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
    """Keep the winners of every pool and repair them; layer by layer, where that is needed."""
    masks, errors = {}, {}
    for stats in stats_by_block(model, batches, family, weights, evidence, recipe):
        scores = scores_of(replace(evidence, stats=stats), weights, recipe)
        chosen = {target: pools[target].keep(scores[target]) for target in stats}
        for target, mask in chosen.items():
            weight, statistic = weights[target], stats[target]
            importance = evidence.importance.get(target)
            repaired = repair_layer(model, target, mask, statistic, importance, pools, recipe)
            if statistic.gram is not None:
                errors[target] = layer_errors(weight, mask, repaired, statistic)
            install_(model, target, repaired)
            masks[target] = repaired.mask
    return Outcome(MaskSet({target: masks[target] for target in weights}), errors)


def stats_by_block(
    model: nn.Module,
    batches: Iterable[Batch],
    family: Family,
    weights: Weights,
    evidence: Evidence,
    recipe: Recipe,
) -> Iterable[Stats]:
    """Return what is known of all layers at once, or else observe block after block."""
    has_gram = all(statistic.gram is not None for statistic in evidence.stats.values())
    if not recipe.sequential and (has_gram or not recipe.needs_gram):
        return [evidence.stats]
    seen = replace(recipe.observation, with_gram=recipe.needs_gram)
    return calibrate_blocks(model, batches, family, weights, seen, follow=recipe.follow)


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


def bias_of(model: nn.Module, target: PruneTarget) -> Tensor | None:
    """Return a layer's bias, if it has one."""
    layer: Any = model.get_submodule(target.name)
    bias: Tensor | None = layer.bias
    return bias


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


def install_(model: nn.Module, target: PruneTarget, repaired: Repaired) -> None:
    """Overwrite a layer's weights and bias."""
    weight_matrix(model, target).copy_(repaired.weight)
    bias = bias_of(model, target)
    if bias is not None:
        bias += repaired.bias_shift


@contextmanager
def restoring(model: nn.Module, weights: Weights) -> Iterator[None]:
    """Give the layers their weights and biases back when the block ends."""
    biases = {target: bias_of(model, target) for target in weights}
    before = {target: weight.clone() for target, weight in weights.items()}
    biases_before = {t: bias.clone() for t, bias in biases.items() if bias is not None}
    try:
        yield
    finally:
        with torch.no_grad():
            for target, weight in before.items():
                weight_matrix(model, target).copy_(weight)
            for target, values in biases_before.items():
                biases[target].copy_(values)
