"""The whole method on one screen."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditprune.activations import (
    ActivationStats,
    Stats,
    demand_finite,
    demand_reached,
    merge_ranks_,
    recording,
)
from ditprune.distributed import share_of_rank
from ditprune.families import Batch, Family
from ditprune.granularity import Granularity
from ditprune.masks import MaskSet, weight_matrix
from ditprune.saliency import Saliency, Scores
from ditprune.targets import PruneTarget


def prune(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    family: Family,
    saliency: Saliency,
    granularity: Granularity,
    num_timestep_bins: int = 1,
) -> MaskSet:
    """Zero the least salient target weights of `model` in place; return the masks.

    In a process group every rank must call this, with the same batches: each takes its share of
    the samples, and all find the same masks.

    Raises:
        ValueError: if a weight or an activation is not finite, a layer is missing or never
            reached, or there are no batches. The model is untouched then.
    """
    weights = target_weights(model, family)
    stats = calibrate(model, batches, family, weights, num_timestep_bins=num_timestep_bins)
    scores = Scores(saliency, weights, stats)
    masks = MaskSet(granularity.keep(scores))
    masks.apply_(model)
    return masks


def target_weights(model: nn.Module, family: Family) -> dict[PruneTarget, Float[Tensor, "out in"]]:
    """Return the weights of the family's targets, which share the model's memory."""
    weights = {target: weight_matrix(model, target) for target in family.targets(model)}
    bad = [target.name for target, weight in weights.items() if not weight.isfinite().all()]
    if bad:
        raise ValueError(
            f"the model has NaN or infinite weights in {', '.join(bad[:8])}; the checkpoint is "
            "damaged, or its dtype too narrow"
        )
    return weights


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    family: Family,
    weights: Mapping[PruneTarget, Float[Tensor, "out in"]],
    *,
    num_timestep_bins: int = 1,
) -> Stats:
    """Return the energy that flows into every target while the model predicts the batches.

    Each sample passes the model alone, so that the statistics are the same, to the bit, however
    the samples are split into batches.
    """
    stats = {
        target: ActivationStats(weight.shape[1], num_timestep_bins, weight.device)
        for target, weight in weights.items()
    }
    num_samples = 0
    with evaluating(model):
        for sample in share_of_rank(single_samples(batches)):
            with recording(model, stats, timestep_bin(sample, num_timestep_bins)):
                family.predict(model, sample.like(next(iter(weights.values()))))
            if num_samples == 0:
                demand_reached(stats)
            num_samples += 1
    merge_ranks_(stats)
    demand_samples(stats)
    demand_finite(stats)
    return stats


def single_samples(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the samples one by one."""
    for batch in batches:
        yield from (batch.sample(index) for index in range(len(batch.latents)))


def timestep_bin(sample: Batch, num_timestep_bins: int) -> int:
    """Return the bin of one sample, of equal parts of the noise schedule."""
    return min(int(sample.noise_level.item() * num_timestep_bins), num_timestep_bins - 1)


def demand_samples(stats: Stats) -> None:
    """Raise a ValueError if there was nothing to calibrate with."""
    if not any(statistic.num_tokens.any() for statistic in stats.values()):
        raise ValueError(
            "the calibration set is empty: it needs at least one sample, and 128 are usual "
            "(num_calibration_samples of the datamodule)"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode while the block runs, then back as it was."""
    training = {module for module in model.modules() if module.training}
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
