"""Draws images from the dense and the pruned model, and compares them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Protocol, runtime_checkable

import lightning as L
from jaxtyping import Int, UInt8
from torch import Tensor

from ditprune.calibration import evaluating
from ditprune.callbacks.before_pruning import BeforePruning
from ditprune.callbacks.granularity import GranularityCallback
from ditprune.callbacks.lookup import find_callback, run_folder
from ditprune.distributed import on_first_rank
from ditprune.evaluation import (
    Measured,
    Sampler,
    Samples,
    SamplingPlan,
    draw_samples,
    extract_all,
    measure,
    measure_pairs,
    warn_of_few_images,
)
from ditprune.metrics import (
    FeatureExtractor,
    FeatureMetric,
    Features,
    FrechetDistance,
    InceptionScore,
    PrecisionRecall,
)


@runtime_checkable
class EvaluationSource(Protocol):
    """A datamodule that says what to draw and what to compare it with."""

    def evaluation_conditions(self, num_samples: int) -> Int[Tensor, " n"]:
        """Return what to ask the model for, one for each sample."""
        ...

    def reference_dataloader(self) -> Iterable[UInt8[Tensor, "b c h w"]]:
        """Return real images, in the same order on every rank."""
        ...


class EvaluationCallback(BeforePruning):
    """Measures generated images in `trainer.validate`: FID, inception score, precision, recall.

    The dense model is sampled before it is pruned, and the pruned one from the same noise, so
    that the images can be compared pair by pair too. Images and features are kept in the run
    folder, and found again by the next run.
    """

    dense: Measured | None = None
    pruned: Measured | None = None
    dense_samples: Mapping[int, Samples] | None = None
    pruned_samples: Mapping[int, Samples] | None = None
    reference: Features | None = None
    """Features of the real images, on the rank that measures."""
    sampling_seconds: float = 0.0

    def __init__(
        self,
        extractor: FeatureExtractor,
        metrics: Sequence[FeatureMetric] | None = None,
        num_samples: int = 1000,
        seeds: Sequence[int] = (0,),
        chunk_size: int = 100,
        samples_folder: str | None = None,
    ) -> None:
        """Choose what to measure.

        Args:
            extractor: the network whose features are compared.
            metrics: on those features; None is FID, inception score, precision and recall. With
                an empty list no reference images are asked for: the pruned model's images are
                compared with the dense one's alone.
            num_samples: images to draw for each seed.
            seeds: of the noise; tables give mean and standard deviation over them.
            chunk_size: images drawn at once; it decides which kernels run, so it may move the
                last bits, whereas the number of processes may not.
            samples_folder: where images and features are kept; None is `samples` in the run
                folder.
        """
        if metrics is None:
            metrics = [FrechetDistance(), InceptionScore(), PrecisionRecall()]
        self.extractor = extractor
        self.metrics = metrics
        self.num_samples = num_samples
        self.seeds = tuple(seeds)
        self.chunk_size = chunk_size
        self.samples_folder = samples_folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there is something to draw with, to draw, and to compare with."""
        if not isinstance(pl_module, Sampler):
            raise ValueError(
                f"EvaluationCallback draws images with {type(pl_module).__name__}.sample("
                "condition, generators), and there is none; see ditprune.evaluation.Sampler"
            )
        self._plan(trainer)
        if self.metrics:
            self._source(trainer).reference_dataloader()
        self.extractor.to(pl_module.device)  # loads its weights: now, not after the sampling
        if self.dense is None and trainer.is_global_zero:
            warn_of_few_images(self.metrics, self.num_samples)

    def before_pruning(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and measure the dense model's images, once."""
        if self.dense is None:
            self.dense_samples = self._draw(trainer, pl_module, "dense")
            self.dense = self._measure(trainer, self.dense_samples)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and measure the pruned model's images; without pruning, the model's as it is."""
        if trainer.sanity_checking:
            return
        granularity = find_callback(trainer, GranularityCallback)
        if granularity is None:
            self.before_pruning(trainer, pl_module)
        else:
            granularity.demand_pruned(trainer, pl_module)
            self.pruned = self.measure_pruned(trainer, pl_module)
        self._log(pl_module, "dense", self.dense or {})
        self._log(pl_module, "pruned", self.pruned or {})

    def measure_pruned(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Measured:
        """Draw and measure the images of the model as it is now, and pair them with the dense."""
        self.pruned_samples = self._draw(trainer, pl_module, "pruned")
        measured = self._measure(trainer, self.pruned_samples)
        # A callback that joins after the pruning has never seen the dense model.
        if self.dense_samples is not None:
            measured.update(measure_pairs(self.pruned_samples, self.dense_samples))
        return measured

    def identity(self) -> str:
        """Return what decides the numbers, but for the pruning: also what the dense model draws."""
        metrics = [type(metric).__name__ for metric in self.metrics]
        settings = (self.num_samples, self.seeds, self.chunk_size)
        return f"{self.extractor.name} {metrics} {settings} {self.dense}"

    def _measure(self, trainer: L.Trainer, samples: Mapping[int, Samples]) -> Measured:
        if not self.metrics:
            return {}
        features = {seed: drawn.features for seed, drawn in samples.items()}
        return on_first_rank(lambda: measure(features, self._reference(trainer), self.metrics))

    def _reference(self, trainer: L.Trainer) -> Features:
        if self.reference is None:
            loader = self._source(trainer).reference_dataloader()
            self.reference = extract_all(loader, self.extractor)
        return self.reference

    def _draw(
        self, trainer: L.Trainer, pl_module: L.LightningModule, title: str
    ) -> Mapping[int, Samples]:
        start = perf_counter()
        assert isinstance(pl_module, Sampler)
        folder = Path(self.samples_folder or run_folder(trainer) / "samples")
        self.extractor.to(pl_module.device)
        with evaluating(pl_module):
            samples = draw_samples(pl_module, self._plan(trainer), self.extractor, folder, title)
        self.sampling_seconds += perf_counter() - start
        return samples

    def _plan(self, trainer: L.Trainer) -> SamplingPlan:
        conditions = self._source(trainer).evaluation_conditions(self.num_samples)
        return SamplingPlan(conditions, self.seeds, self.chunk_size)

    def _source(self, trainer: L.Trainer) -> EvaluationSource:
        source = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(source, EvaluationSource):
            raise ValueError(
                "EvaluationCallback asks the datamodule for evaluation_conditions(num_samples) "
                f"and reference_dataloader(), and {type(source).__name__} lacks one; pass a "
                "datamodule with both to the trainer"
            )
        return source

    def _log(self, pl_module: L.LightningModule, model: str, measured: Measured) -> None:
        for name, values in measured.items():
            mean = sum(values) / len(values)
            pl_module.log(f"{name}/{model}", mean, batch_size=1, sync_dist=True)
