"""The whole method on one screen."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ditprune.activations import ActivationStats, Stats
from ditprune.blocks import calibrate_blocks
from ditprune.budget import Budget, Probe
from ditprune.calibration import Weights, calibrate
from ditprune.distributed import all_cores, broadcast_, rank
from ditprune.families import Batch, Family
from ditprune.granularity import Granularity, Pools
from ditprune.granularity.base import shape_of
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
    probe: Probe | None = None,
) -> Outcome:
    """Prune the target weights of `model` in place, and repair what the recipe says.

    In a process group every rank must call this, with the same batches: each takes its share of
    the samples, and all get the same model.

    Args:
        model: any module whose layers the family finds.
        batches: calibration samples.
        family: where the layers are and how to call the model once.
        recipe: what is pruned how.
        probe: how far the images move if a layer changes; for budgets that measure it.

    Raises:
        ValueError: if a weight or an activation is not finite, a layer is missing or never
            reached, the sparsity is impossible, or there are no batches. The model is untouched
            then.
    """
    weights = target_weights(model, family)
    demand_attainable(weights, recipe.granularity, recipe.sparsity, recipe.budget)
    batches = list(batches)
    seen = replace(recipe.observation, with_gram=recipe.saliency.needs_gram)
    scores = Scores(recipe.saliency, weights, calibrate(model, batches, family, weights, seen))
    pools = decide(scores, recipe, probe)
    return carry_out_(model, batches, family, scores, pools, recipe)


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


def decide(scores: Scores, recipe: Recipe, probe: Probe | None = None) -> dict[PruneTarget, Pools]:
    """Choose how much each layer gives, and who competes with whom there."""
    num_pruned = recipe.budget.allocate(scores, recipe.sparsity, probe)
    return recipe.granularity.pools(scores, num_pruned)


@torch.no_grad()
def carry_out_(
    model: nn.Module,
    batches: Iterable[Batch],
    family: Family,
    scores: Scores,
    pools: Mapping[PruneTarget, Pools],
    recipe: Recipe,
) -> Outcome:
    """Keep the winners of every pool and repair them; block by block, where that is needed."""
    masks, errors = {}, {}
    for stats in stats_by_block(model, batches, family, scores, recipe):
        seen = Scores(scores.saliency, scores.weights, stats)
        chosen = {target: pools[target].keep(seen[target]) for target in stats}
        for target, mask in chosen.items():
            weight = scores.weights[target]
            repaired = repair_layer(model, target, mask, stats[target], pools[target], recipe)
            if stats[target].gram is not None:
                errors[target] = layer_errors(weight, mask, repaired, stats[target])
            install_(model, target, repaired)
            masks[target] = repaired.mask
    return Outcome(MaskSet({target: masks[target] for target in scores}), errors)


def stats_by_block(
    model: nn.Module, batches: Iterable[Batch], family: Family, scores: Scores, recipe: Recipe
) -> Iterable[Stats]:
    """Return what is known of all layers at once, or else observe block after block."""
    has_gram = all(statistic.gram is not None for statistic in scores.stats.values())
    if not recipe.sequential and (has_gram or not recipe.needs_gram):
        return [scores.stats]
    seen = replace(recipe.observation, with_gram=recipe.needs_gram)
    return calibrate_blocks(
        model, batches, family, scores.weights, seen, sequential=recipe.sequential
    )


def repair_layer(
    model: nn.Module,
    target: PruneTarget,
    mask: Bool[Tensor, "out in"],
    stats: ActivationStats,
    pools: Pools,
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
            masked = recipe.repair.repair(weight, mask, stats, pools, has_bias)
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
