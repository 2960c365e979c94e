"""Writes what a run leaves behind: report, masks, pruned model, TensorBoard page."""

import importlib.metadata
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from diffusers import SchedulerMixin
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.markdown import Markdown

from ditprune.atomic import demand_writable, writing_folder
from ditprune.callbacks.evaluate import EvaluationCallback
from ditprune.callbacks.granularity import GranularityCallback
from ditprune.callbacks.lookup import demand_callback, find_callback, run_folder
from ditprune.callbacks.prune import PruneCallback
from ditprune.distributed import barrier, rank
from ditprune.export import save_pruned
from ditprune.importance import Importance
from ditprune.plots import save_clusters, save_importance_figure
from ditprune.report import PruneReport
from ditprune.targets import PruneTarget
from ditprune.tensorboard import write_clusters, write_importance, write_layers, write_pairs

PACKAGES = ("ditprune", "torch", "lightning", "diffusers")


class ReportCallback(L.Callback):
    """Writes the run folder when a fit or a validation has pruned.

    `report.md` and `report.json`; `masks.safetensors`; the pruned model in diffusers' layout,
    dense with zeros, with `pruning_config.json` beside its weights; where a granularity grouped
    rows, heat maps with the clusters; where importance was measured, a figure of it; TensorBoard's
    scalars, figures, image pairs and hyperparameters.
    """

    report: PruneReport | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the run folder can be written to."""
        demand_callback(trainer, GranularityCallback)
        folder = run_folder(trainer)
        if rank() == 0:
            demand_writable(folder)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what is known without validation."""
        self._write(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write everything."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = run_folder(trainer)
        self.report = self._make_report(trainer)
        if rank() == 0:
            self.report.save(folder)
            self._save_model(trainer, pl_module, folder)
            save_clusters(demand_callback(trainer, GranularityCallback).clustered, folder)
            save_importance_figure(importance_of(trainer), folder)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    self._log(trainer, logger)
            Console().print(Markdown(self.report.summary()), f"written to {folder}")
        barrier()

    def _save_model(self, trainer: L.Trainer, pl_module: L.LightningModule, folder: Path) -> None:
        pruner = demand_callback(trainer, PruneCallback)
        masks = demand_callback(trainer, GranularityCallback).masks
        assert masks is not None
        assert self.report is not None
        config = self.report.pruning_config()
        found = pruner.found(pl_module)
        save_pruned(found.model, masks, config, folder, found.path.rpartition(".")[2])
        scheduler = getattr(pl_module, "scheduler", None)
        if isinstance(scheduler, SchedulerMixin):
            with writing_folder(folder / "scheduler") as draft:
                scheduler.save_pretrained(draft)

    def _log(self, trainer: L.Trainer, logger: TensorBoardLogger) -> None:
        assert self.report is not None
        write_layers(logger.experiment, self.report)
        write_clusters(logger.experiment, demand_callback(trainer, GranularityCallback).clustered)
        write_importance(logger.experiment, importance_of(trainer))
        evaluation = find_callback(trainer, EvaluationCallback)
        if evaluation and evaluation.pruned_samples and evaluation.dense_samples:
            seed = evaluation.seeds[0]
            dense, pruned = evaluation.dense_samples[seed], evaluation.pruned_samples[seed]
            write_pairs(logger.experiment, dense.images, pruned.images)
        logger.log_hyperparams(dict(self.report.recipe), self.report.scalars())

    def _make_report(self, trainer: L.Trainer) -> PruneReport:
        pruner = demand_callback(trainer, PruneCallback)
        granularity = demand_callback(trainer, GranularityCallback)
        evaluation = find_callback(trainer, EvaluationCallback)
        assert granularity.plan is not None
        assert granularity.masks is not None
        return PruneReport(
            recipe={"family": repr(pruner.family), **granularity.recipe(pruner).parts()},
            plan=granularity.plan,
            mask_hash=granularity.masks.hash(),
            features=evaluation.extractor.name if evaluation else "",
            num_samples=evaluation.num_samples if evaluation else 0,
            seeds=evaluation.seeds if evaluation else (),
            dense=(evaluation and evaluation.dense) or {},
            pruned=(evaluation and evaluation.pruned) or {},
            cost={
                "calibration, s": pruner.calibration_seconds,
                "of which importance, s": pruner.importance_seconds,
                "pruning, s": granularity.repair_seconds,
                "sampling, s": evaluation.sampling_seconds if evaluation else 0.0,
                "peak memory, MiB": peak_memory(),
                "processes": str(trainer.world_size),
                **{package: importlib.metadata.version(package) for package in PACKAGES},
            },
        )


def importance_of(trainer: L.Trainer) -> Mapping[PruneTarget, Importance]:
    """Return what was measured of it: nothing, where that was not asked for."""
    evidence = demand_callback(trainer, PruneCallback).evidence
    assert evidence is not None
    return evidence.importance


def peak_memory() -> float:
    """Return this process's peak memory in MiB: of the GPU if it uses one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
