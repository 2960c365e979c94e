"""Collects what flows into the layers, in a fit that trains nothing."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track
from torch import nn

from ditprune.calibration import (
    Even,
    Observation,
    TimestepWeighting,
    Weights,
    calibrate,
)
from ditprune.callbacks.before_pruning import BeforeCalibration, BeforePruning
from ditprune.callbacks.calibration_fit import demand_whole_weights, without_training
from ditprune.callbacks.lookup import callbacks_of, run_folder
from ditprune.decision import Evidence
from ditprune.distributed import rank
from ditprune.families import Batch, Family
from ditprune.find import Found, demand_family, find_transformer
from ditprune.importance import Importance, ImportanceMeasure
from ditprune.layers import target_weights
from ditprune.pipeline import measure_importance
from ditprune.saliency import Energy, Saliency
from ditprune.saved_stats import load_evidence, save_evidence
from ditprune.targets import PruneTarget


@runtime_checkable
class CalibrationSource(Protocol):
    """A datamodule with samples to calibrate with."""

    def calibration_dataloader(self) -> Iterable[Batch]:
        """Return the same batches on every rank: each rank takes its share of the samples."""
        ...


class PruneCallback(BeforePruning):
    """Collects what flows into the layers of a transformer, by which its weights are scored.

    `trainer.fit` becomes the calibration: nothing is trained. With `trainer.validate` alone, the
    calibration runs first. The samples come from the datamodule's `calibration_dataloader()`.
    """

    evidence: Evidence | None = None
    """What the calibration tells, once it has run."""
    calibration_seconds: float = 0.0
    importance_seconds: float = 0.0
    """Of these, what it took to measure importance."""

    def __init__(
        self,
        family: Family | None = None,
        saliency: Saliency = Energy(),
        num_timestep_bins: int = 10,
        timestep_weighting: TimestepWeighting = Even(),
        importance: ImportanceMeasure | None = None,
        module: str | None = None,
        stats: str | None = None,
    ) -> None:
        """Choose what to collect.

        Args:
            family: where the transformer's layers are and how to call it; None is the one of
                the transformer's class.
            saliency: what a weight is worth.
            num_timestep_bins: parts of the noise schedule whose energies are kept apart.
            timestep_weighting: how much samples at each level of noise count.
            importance: measures how far errors of each layer's outputs move the images; None
                weighs all errors alike.
            module: dotted path of the transformer inside the LightningModule, or of one inside
                a pipeline that it holds; None finds it.
            stats: run folder whose calibration is used again, in place of another one.
        """
        self._family = family
        self.saliency = saliency
        self.observation = Observation(num_timestep_bins, timestep_weighting, saliency.needs_gram)
        self.importance = importance
        self.module = module
        self.stats = stats
        self._cleanup = ExitStack()

    @property
    def family(self) -> Family:
        """Where the transformer's layers are; known from the calibration on, if it was not told."""
        if self._family is None:
            raise RuntimeError("the family is found with the transformer, which was not looked for")
        return self._family

    def transformer(self, pl_module: L.LightningModule) -> nn.Module:
        """Return the module that is pruned."""
        return self.found(pl_module).model

    def found(self, pl_module: L.LightningModule) -> Found:
        """Return the module that is pruned, and its path; see what family it is of."""
        found = find_transformer(pl_module, self.module)
        self._family = self._family or demand_family(found)
        return found

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check what can be checked at once; turn a fit into a calibration."""
        demand_whole_weights(trainer.strategy)
        self._source(trainer)
        if stage == "fit":
            self._cleanup.enter_context(without_training(trainer))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the trainer back as it was."""
        self._cleanup.close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the trainer back as it was."""
        self._cleanup.close()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrate."""
        self.before_pruning(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrate, if that was not done yet."""
        self.before_pruning(trainer, pl_module)

    def before_pruning(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collect activation energy, once."""
        if self.evidence is not None:
            return
        start = perf_counter()
        with torch.inference_mode(False):
            found = self.found(pl_module)
            rank_zero_info(f"pruning {found}, by {self.family}")
            weights = target_weights(found.model, self.family)
            for callback in callbacks_of(trainer):
                if isinstance(callback, BeforeCalibration):
                    callback.before_calibration(weights)
                    self._observe_grams(callback.needs_gram)
            self.evidence = (
                load_evidence(Path(self.stats), weights, self.observation, self.importance)
                if self.stats
                else self._calibrate(trainer, pl_module, weights)
            )
        self.calibration_seconds = perf_counter() - start

    def _calibrate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, weights: Weights
    ) -> Evidence:
        model = self.transformer(pl_module)
        importance = self._importance(trainer, pl_module, weights)
        batches = track(self.batches(trainer), "calibrating", disable=rank() > 0)
        stats = calibrate(model, batches, self.family, weights, self.observation)
        evidence = Evidence(stats, importance)
        folder = run_folder(trainer)
        if rank() == 0:
            save_evidence(folder, evidence, weights, self.observation, self.importance)
        return evidence

    def _observe_grams(self, needed: bool) -> None:
        with_gram = self.observation.with_gram or needed
        self.observation = replace(self.observation, with_gram=with_gram)

    def _importance(
        self, trainer: L.Trainer, pl_module: L.LightningModule, weights: Weights
    ) -> Mapping[PruneTarget, Importance]:
        model, batches = self.transformer(pl_module), self.batches(trainer)
        scheduler, start = getattr(pl_module, "scheduler", None), perf_counter()
        importance = measure_importance(
            model, batches, self.family, weights, self.importance, scheduler
        )
        self.importance_seconds = perf_counter() - start
        return importance

    def batches(self, trainer: L.Trainer) -> Iterable[Batch]:
        """Return the calibration samples, as often as asked."""
        return self._source(trainer).calibration_dataloader()

    def _source(self, trainer: L.Trainer) -> CalibrationSource:
        source = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(source, CalibrationSource):
            raise ValueError(
                "PruneCallback takes its samples from the datamodule's calibration_dataloader(), "
                f"and {type(source).__name__} has none. Pass a datamodule with one to the trainer; "
                "ditprune.datamodules.CalibrationDataset makes the samples."
            )
        return source
