"""Calibration samples through the model, one by one, and what that tells of every layer."""

import abc
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

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
from ditprune.targets import PruneTarget

Weights = Mapping[PruneTarget, Float[Tensor, "out in"]]


class TimestepWeighting(abc.ABC):
    """How much a calibration sample counts, by its position in the noise schedule."""

    @abc.abstractmethod
    def at(self, noise_level: float) -> float:
        """Return the weight of a sample; 0 is almost clean, 1 is noise."""


@dataclass(frozen=True)
class Even(TimestepWeighting):
    """Every timestep counts alike."""

    def at(self, noise_level: float) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class LogDecrease(TimestepWeighting):
    """Early denoising steps count more, because their errors go through all later ones.

    w_k = 0.8 + 0.4 ln(1 + k) / ln(T) of OBS-Diff (arXiv 2510.06751), k counted from the last
    denoising step of T.
    """

    num_steps: int = 25

    def __post_init__(self) -> None:
        """Refuse a schedule without a second step."""
        if self.num_steps < 2:
            raise ValueError(f"num_steps must be at least 2; got {self.num_steps}")

    def at(self, noise_level: float) -> float:
        """Return the weight of the step at this level of noise, rounded to 8 bits."""
        step = noise_level * (self.num_steps - 1)
        weight = 0.8 + 0.4 * math.log1p(step) / math.log(self.num_steps)
        return coarse(weight)


def coarse(weight: float) -> float:
    """Round to 8 bits: times a sum of 24 bits it is exact in 53, in whatever order it is added."""
    mantissa, exponent = math.frexp(weight)
    return math.ldexp(round(mantissa * 256), exponent - 8)


@dataclass(frozen=True)
class Observation:
    """What of the calibration is kept."""

    num_timestep_bins: int = 1
    """Parts of the noise schedule whose energies are kept apart."""
    weighting: TimestepWeighting = Even()
    with_gram: bool = False
    """Keep the Gram matrix of every input too: in x in float64 numbers."""

    def __post_init__(self) -> None:
        """Refuse no bin."""
        if self.num_timestep_bins < 1:
            raise ValueError(f"num_timestep_bins must be at least 1; got {self.num_timestep_bins}")

    def empty(
        self, weights: Weights, with_dense: bool = False
    ) -> dict[PruneTarget, ActivationStats]:
        """Return statistics of nothing for every layer."""
        bins, gram = self.num_timestep_bins, self.with_gram
        return {
            target: ActivationStats(weight.shape[1], bins, weight.device, gram, with_dense)
            for target, weight in weights.items()
        }

    @contextmanager
    def of(
        self,
        sample: Batch,
        model: nn.Module,
        stats: dict[PruneTarget, ActivationStats],
        dense: Iterable[Tensor] = (),
    ) -> Iterator[None]:
        """Record what flows into the layers of `stats` while the model sees one sample."""
        level = sample.noise_level.item()
        timestep_bin = min(int(level * self.num_timestep_bins), self.num_timestep_bins - 1)
        with recording(model, stats, timestep_bin, self.weighting.at(level), dense):
            yield


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    family: Family,
    weights: Weights,
    observation: Observation = Observation(),
) -> Stats:
    """Return what flows into every target while the model predicts the batches.

    Each sample passes the model alone, so that the statistics are the same, to the bit, however
    the samples are split into batches.
    """
    stats = observation.empty(weights)
    like = next(iter(weights.values()))
    with evaluating(model):
        for sample in share_of_rank(single_samples(batches)):
            with observation.of(sample, model, stats):
                family.predict(model, sample.like(like))
            demand_reached(stats)
    merge_ranks_(stats)
    demand_samples(any(statistic.weight.any() for statistic in stats.values()))
    demand_finite(stats)
    return stats


def single_samples(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the samples one by one."""
    for batch in batches:
        yield from (batch.sample(index) for index in range(len(batch.latents)))


def demand_samples(there_are: bool) -> None:
    """Raise a ValueError if there was nothing to calibrate with."""
    if not there_are:
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
