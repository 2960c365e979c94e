"""Collects activation energy, with no gradients, and scores the weights by it."""

from collections.abc import Iterable
from contextlib import ExitStack
from time import perf_counter
from typing import Protocol, runtime_checkable

import lightning as L
import torch
from rich.progress import track
from torch import nn

from ditprune.calibration import Even, Observation, TimestepWeighting, calibrate
from ditprune.callbacks.before_pruning import BeforeCalibration, BeforePruning
from ditprune.callbacks.calibration_fit import demand_whole_weights, without_training
from ditprune.callbacks.lookup import callbacks_of, find_module
from ditprune.distributed import rank
from ditprune.families import Batch, DiT, Family
from ditprune.pipeline import target_weights
from ditprune.saliency import Energy, Saliency, Scores


@runtime_checkable
class CalibrationSource(Protocol):
    """A datamodule with samples to calibrate with."""

    def calibration_dataloader(self) -> Iterable[Batch]:
        """Return the same batches on every rank: each rank takes its share of the samples."""
        ...


class PruneCallback(BeforePruning):
    """Scores the weights of a transformer by the energy that flows into its layers.

    `trainer.fit` becomes the calibration: nothing is trained. With `trainer.validate` alone, the
    calibration runs first. The samples come from the datamodule's `calibration_dataloader()`.
    """

    scores: Scores | None = None
    """A score for every target weight, once calibrated."""
    calibration_seconds: float = 0.0

    def __init__(
        self,
        family: Family = DiT(),
        saliency: Saliency = Energy(),
        num_timestep_bins: int = 10,
        timestep_weighting: TimestepWeighting = Even(),
        module: str = "transformer",
    ) -> None:
        """Choose what to collect.

        Args:
            family: where the transformer's layers are and how to call it.
            saliency: what a weight is worth.
            num_timestep_bins: parts of the noise schedule whose energies are kept apart.
            timestep_weighting: how much samples at each level of noise count.
            module: path of the transformer inside the LightningModule.
        """
        self.family = family
        self.saliency = saliency
        self.observation = Observation(num_timestep_bins, timestep_weighting, saliency.needs_gram)
        self.module = module
        self._cleanup = ExitStack()

    def transformer(self, pl_module: L.LightningModule) -> nn.Module:
        """Return the module that is pruned."""
        return find_module(pl_module, self.module)

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
        if self.scores is not None:
            return
        start = perf_counter()
        with torch.inference_mode(False):
            model = self.transformer(pl_module)
            weights = target_weights(model, self.family)
            for callback in callbacks_of(trainer):
                if isinstance(callback, BeforeCalibration):
                    callback.before_calibration(weights)
            batches = track(self.batches(trainer), "calibrating", disable=rank() > 0)
            stats = calibrate(model, batches, self.family, weights, self.observation)
        self.scores = Scores(self.saliency, weights, stats)
        self.calibration_seconds = perf_counter() - start

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
