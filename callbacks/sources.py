"""What an evaluation asks the datamodule for: conditions to draw, and what to compare with."""

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L
from jaxtyping import Int, UInt8
from torch import Tensor

from ditprune.catalogue import Catalogue
from ditprune.families import Batch
from ditprune.measurement import demand_statistics_do
from ditprune.metrics import FeatureMetric
from ditprune.sampling_plan import SamplingPlan


@runtime_checkable
class EvaluationSource(Protocol):
    """A datamodule with something to draw, and something to compare it with."""

    def evaluation_conditions(self, num_samples: int) -> Int[Tensor, " n"]:
        """Return what to draw, class labels or indices of prompts: the same on every rank."""
        ...

    def reference_dataloader(self) -> Iterable[UInt8[Tensor, "b c h w"]]:
        """Return the real images, in the same batches on every rank."""
        ...


@runtime_checkable
class PromptSource(Protocol):
    """A datamodule whose conditions stand for prompts."""

    def evaluation_prompts(self, num_samples: int) -> Sequence[str]:
        """Return the prompts of the same samples as `evaluation_conditions`."""
        ...


@runtime_checkable
class StatisticsSource(Protocol):
    """A datamodule that may know mean and covariance of more real images than it has."""

    def reference_statistics(self) -> Path | None:
        """Return a file of them, as ADM's evaluator and `ditprune statistics` write it."""
        ...


@runtime_checkable
class CatalogueSource(Protocol):
    """A datamodule whose real images are those of a data set, one for each condition."""

    @property
    def catalogue(self) -> Catalogue:
        """What `reference_dataloader` gives, in order; conditions are the first ones of it."""
        ...


@runtime_checkable
class SeededCalibrationSource(Protocol):
    """A datamodule that can draw its calibration samples anew."""

    def calibration_dataloader(self, seed: int) -> Iterable[Batch]:
        """Return the samples of a seed: the same batches on every rank."""
        ...


def source_of(trainer: L.Trainer) -> EvaluationSource:
    """Return the datamodule.

    Raises:
        ValueError: if it has nothing to draw or to compare with.
    """
    source = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(source, EvaluationSource):
        raise ValueError(
            "EvaluationCallback asks the datamodule for evaluation_conditions(num_samples) "
            f"and reference_dataloader(), and {type(source).__name__} lacks one; pass a "
            "datamodule with both to the trainer"
        )
    return source


def plan_of(
    source: EvaluationSource, num_samples: int, seeds: tuple[int, ...], chunk_size: int
) -> SamplingPlan:
    """Return which images are drawn, in batches no larger than all of them."""
    conditions = source.evaluation_conditions(num_samples)
    if 0 < len(conditions) < chunk_size:
        chunk_size = len(conditions)
    prompts: Sequence[str] = ()
    if isinstance(source, PromptSource):
        prompts = source.evaluation_prompts(num_samples)
    return SamplingPlan(conditions, seeds, chunk_size, prompts)


def statistics_of(source: EvaluationSource) -> Path | None:
    """Return the file of statistics, if there is one."""
    return source.reference_statistics() if isinstance(source, StatisticsSource) else None


def catalogue_of(source: EvaluationSource) -> Catalogue | None:
    """Return which images of a data set there are, if they are of one."""
    return source.catalogue if isinstance(source, CatalogueSource) else None


def first_real_images(
    source: EvaluationSource, metrics: Sequence[FeatureMetric]
) -> UInt8[Tensor, "b c h w"] | None:
    """Return some real images, or None where there are only statistics.

    Raises:
        ValueError: if there is nothing to compare with, or not what metrics need.
    """
    first = next(iter(source.reference_dataloader()), None)
    if first is not None:
        return first
    statistics = statistics_of(source)
    if statistics is None:
        raise ValueError(
            "there are no real images to compare with: the datamodule's reference_dataloader() is "
            "empty"
        )
    demand_statistics_do(statistics, metrics)
    return None


def demand_prompts(source: EvaluationSource) -> None:
    """Raise a ValueError if the datamodule has no prompts to score images with."""
    if not isinstance(source, PromptSource):
        raise ValueError(
            "prompt_metrics score each image with its own prompt, which they ask the "
            f"datamodule for by evaluation_prompts(num_samples), and {type(source).__name__} "
            "has none: pass one that has, or leave prompt_metrics out"
        )


def seeded_source_of(trainer: L.Trainer) -> SeededCalibrationSource:
    """Return the datamodule.

    Raises:
        ValueError: if it draws its calibration samples from no seed.
    """
    source = trainer.datamodule  # type: ignore[attr-defined]
    # The protocol's check is of the name alone.
    if not isinstance(source, SeededCalibrationSource) or not takes_seed(source):
        raise ValueError(
            "studies, and errors of predictions, take calibration samples of several seeds, by the "
            f"datamodule's calibration_dataloader(seed), and {type(source).__name__} has none"
        )
    return source


def takes_seed(source: SeededCalibrationSource) -> bool:
    """Tell whether the samples can be drawn from a seed."""
    try:
        inspect.signature(source.calibration_dataloader).bind(seed=0)
    except TypeError:
        return False
    return True
