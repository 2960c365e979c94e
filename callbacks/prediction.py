"""Measures what pruning changed in single denoising steps."""

from collections.abc import Sequence

import lightning as L
import torch

from ditprune.callbacks.before_pruning import AfterPruning, BeforePruning
from ditprune.callbacks.granularity import GranularityCallback
from ditprune.callbacks.lookup import demand_callback
from ditprune.callbacks.prune import PruneCallback
from ditprune.callbacks.sources import seeded_source_of
from ditprune.layers import target_weights
from ditprune.prediction import HELD_OUT_SEED, Judge, LevelError


class PredictionCallback(BeforePruning, AfterPruning):
    """Measures how wrong the pruned model's predictions are, level of noise by level of noise.

    On samples that pruning has not seen: the datamodule's calibration samples of another seed,
    which along sampling trajectories take as long to draw as those of the calibration.
    """

    errors: Sequence[LevelError] = ()
    """Of the pruned model, once measured."""
    _judge: Judge | None = None

    def __init__(self, num_bins: int = 10) -> None:
        """Choose in how many parts of the noise schedule errors are told."""
        if num_bins < 1:
            raise ValueError(f"num_bins must be at least 1; got {num_bins}")
        self.num_bins = num_bins

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that something is pruned, and that there are other samples."""
        demand_callback(trainer, GranularityCallback)
        seeded_source_of(trainer)

    def before_pruning(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask the dense model, once."""
        if self._judge is not None:
            return
        pruner = demand_callback(trainer, PruneCallback)
        with torch.inference_mode(False):
            model = pruner.transformer(pl_module)
            like = next(iter(target_weights(model, pruner.family).values()))
            samples = seeded_source_of(trainer).calibration_dataloader(seed=HELD_OUT_SEED)
            self._judge = Judge.of(model, samples, pruner.family, like)

    def after_pruning(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask the pruned model."""
        assert self._judge is not None
        with torch.inference_mode(False):
            model = demand_callback(trainer, PruneCallback).transformer(pl_module)
            self.errors = self._judge.errors_by_level(model, self.num_bins)
