"""Draws images from the dense and the pruned model, and compares them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L

from ditprune.atomic import demand_writable, existing
from ditprune.calibration import evaluating
from ditprune.callbacks.axis import step_of
from ditprune.callbacks.before_pruning import BeforePruning
from ditprune.callbacks.granularity import GranularityCallback
from ditprune.callbacks.lookup import find_callback, run_folder
from ditprune.callbacks.sources import (
    catalogue_of,
    demand_prompts,
    first_real_images,
    plan_of,
    source_of,
    statistics_of,
)
from ditprune.distributed import on_first_rank, rank
from ditprune.evaluation import draw_samples
from ditprune.measurement import (
    Measured,
    demand_enough_images,
    demand_features,
    measure_sets,
    measure_values,
    warn_of_few_images,
)
from ditprune.metrics import (
    FeatureExtractor,
    FeatureMetric,
    FrechetDistance,
    InceptionScore,
    PrecisionRecall,
)
from ditprune.metrics.paired import ALWAYS, PairedMetric
from ditprune.metrics.prompted import PromptMetric
from ditprune.patience import explaining_timeouts
from ditprune.pipeline_sampler import sampler_of
from ditprune.reference import Reference, extract_reference
from ditprune.results import Results, compare
from ditprune.samples import Samples
from ditprune.sampling_plan import SamplingPlan


class EvaluationCallback(BeforePruning):
    """Measures generated images in `trainer.validate`: FID, inception score, precision, recall.

    The dense model is sampled before it is pruned, and the pruned one from the same noise, so
    that the images can be compared pair by pair too. Images and what was measured of each are
    kept in the run folder, and found again by the next run; `results.json` has all numbers in
    full. With several processes each draws its share, and the first one compares the sets at last:
    where that takes longer than they wait for each other, give the strategy a longer `timeout`.
    """

    dense: Measured | None = None
    pruned: Measured | None = None
    dense_samples: Mapping[int, Samples] | None = None
    pruned_samples: Mapping[int, Samples] | None = None
    reference: Reference | None = None
    results: Results | None = None
    sampling_seconds: float = 0.0

    def __init__(
        self,
        extractor: FeatureExtractor,
        metrics: Sequence[FeatureMetric] | None = None,
        num_samples: int = 1000,
        seeds: Sequence[int] = (0,),
        chunk_size: int = 100,
        samples_folder: str | None = None,
        prompt_metrics: Sequence[PromptMetric] = (),
        paired_metrics: Sequence[PairedMetric] = (),
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
            prompt_metrics: score each image with its own prompt, for which the datamodule has
                `evaluation_prompts(num_samples)`.
            paired_metrics: compare each pruned image with the dense one, beside MSE, PSNR and SSIM.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples is how many images are drawn; got {num_samples}")
        if metrics is None:
            metrics = [FrechetDistance(), InceptionScore(), PrecisionRecall()]
        self.extractor = extractor
        self.metrics = metrics
        self.num_samples = num_samples
        self.seeds = tuple(seeds)
        self.chunk_size = chunk_size
        self.samples_folder = samples_folder
        self.prompt_metrics = prompt_metrics
        self.paired_metrics = (*ALWAYS, *paired_metrics)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there is something to draw with, to draw, and to compare with."""
        source = source_of(trainer)
        if self.prompt_metrics:
            demand_prompts(source)
        sampler_of(pl_module, self.plan(trainer))
        demand_enough_images(self.metrics, self.num_samples)
        first = first_real_images(source, self.metrics) if self.metrics else None
        self._load_networks(pl_module)  # now, and not after the sampling
        if first is not None:
            demand_features(self.metrics, self.extractor, first[:0])
        folder = self._samples_folder(trainer)
        if trainer.is_global_zero:
            demand_writable(existing(folder))
        if self.dense is None and trainer.is_global_zero:
            warn_of_few_images(self.metrics, self.num_samples)

    def before_pruning(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and measure the dense model's images, once."""
        if self.dense is None:
            if self.metrics:
                self._reference(trainer)  # a real image that cannot be read is found now
            self.dense_samples = self._draw(trainer, pl_module, "dense")
            self.dense = self._measure(trainer, self.dense_samples)
            self._save_results(trainer)

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
            self._save_results(trainer)
            pl_module.log("step", float(step_of(trainer)))  # Lightning takes this for its axis
        self._log(pl_module, "dense", self.dense or {})
        self._log(pl_module, "pruned", self.pruned or {})

    def measure_pruned(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Measured:
        """Draw and measure the images of the model as it is now, and pair them with the dense."""
        # A callback that joins after the pruning has never seen the dense model.
        self.pruned_samples = self._draw(trainer, pl_module, "pruned", self.dense_samples)
        return self._measure(trainer, self.pruned_samples)

    @property
    def features(self) -> str:
        """The network whose features are compared, if any are."""
        return self.extractor.name if self.metrics else ""

    def plan(self, trainer: L.Trainer) -> SamplingPlan:
        """Return which images are drawn."""
        return plan_of(source_of(trainer), self.num_samples, self.seeds, self.chunk_size)

    def protocol(self, trainer: L.Trainer) -> dict[str, Any]:
        """Return what is measured, of which images and how, as `results.json` has it."""
        return {
            "features": self.features,
            "metrics": [metric.protocol for metric in self.metrics],
            "prompt_metrics": [metric.name for metric in self.prompt_metrics],
            "paired_metrics": [metric.protocol for metric in self.paired_metrics],
            "num_samples": self.num_samples,
            "seeds": list(self.seeds),
            "chunk_size": self.chunk_size,
            "conditions": self.plan(trainer).digest(),
            "reference": self.reference.name if self.reference else "",
            "data": str(catalogue_of(source_of(trainer)) or ""),
        }

    def identity(self, trainer: L.Trainer) -> str:
        """Return what decides the numbers, but for the pruning: also what the dense model draws."""
        return f"{self.protocol(trainer)} {self.dense}"

    def _measure(self, trainer: L.Trainer, samples: Mapping[int, Samples]) -> Measured:
        reference = self._reference(trainer) if self.metrics else None
        catalogue = catalogue_of(source_of(trainer))

        def compute() -> Measured:
            sets = {}
            if reference:
                real = reference.real(self.extractor)
                sets = measure_sets(samples.values(), real, self.metrics, catalogue)
            return {**sets, **measure_values(samples.values())}

        with explaining_timeouts():
            return on_first_rank(compute)

    def _reference(self, trainer: L.Trainer) -> Reference:
        if self.reference is None:
            source, folder = source_of(trainer), self._samples_folder(trainer) / "reference"
            self.reference = extract_reference(
                source.reference_dataloader, self.extractor, folder, statistics_of(source)
            )
        return self.reference

    def _save_results(self, trainer: L.Trainer) -> None:
        folder = run_folder(trainer)
        protocol, groups = self.protocol(trainer), self.plan(trainer).groups()
        catalogue = catalogue_of(source_of(trainer))
        with explaining_timeouts():
            self.results = on_first_rank(lambda: compare(protocol, self._models(), groups))
        if rank() == 0:
            self.results.save(folder / "results.json")
            if catalogue is not None:
                catalogue.save(folder / "evaluation_ids.txt")

    def _models(self) -> dict[str, tuple[Mapping[int, Samples], Measured]]:
        found = (
            ("dense", self.dense_samples, self.dense),
            ("pruned", self.pruned_samples, self.pruned),
        )
        return {title: (s, m) for title, s, m in found if s is not None and m is not None}

    def _draw(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        title: str,
        dense: Mapping[int, Samples] | None = None,
    ) -> Mapping[int, Samples]:
        start = perf_counter()
        self._load_networks(pl_module)
        folder, plan = self._samples_folder(trainer), self.plan(trainer)
        extractor = self.extractor if self.metrics else None
        with evaluating(pl_module):
            samples = draw_samples(
                sampler_of(pl_module, plan),
                plan,
                extractor,
                folder,
                title,
                self.prompt_metrics,
                self.paired_metrics,
                dense,
            )
        self.sampling_seconds += perf_counter() - start
        return samples

    def _load_networks(self, pl_module: L.LightningModule) -> None:
        if self.metrics:
            self.extractor.to(pl_module.device)
        for metric in self._image_metrics:
            metric.to(pl_module.device)

    @property
    def _image_metrics(self) -> list[PromptMetric | PairedMetric]:
        return [*self.prompt_metrics, *self.paired_metrics]

    def _samples_folder(self, trainer: L.Trainer) -> Path:
        folder = run_folder(trainer)  # all ranks must call
        return Path(self.samples_folder or folder / "samples")

    def _log(self, pl_module: L.LightningModule, model: str, measured: Measured) -> None:
        for name, values in measured.items():
            mean = sum(values) / len(values)
            pl_module.log(f"{name}/{model}", mean, batch_size=1, sync_dist=True)
