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
from ditprune.callbacks.axis import step_of
from ditprune.callbacks.evaluate import EvaluationCallback
from ditprune.callbacks.granularity import GranularityCallback
from ditprune.callbacks.lookup import demand_callback, find_callback, run_folder
from ditprune.callbacks.prediction import PredictionCallback
from ditprune.callbacks.prune import PruneCallback
from ditprune.distributed import barrier, rank
from ditprune.export import save_pruned
from ditprune.importance import Importance
from ditprune.pairs import Pair, PairedSamples
from ditprune.plots import run_figures, save_clusters, save_importance_figure
from ditprune.report import PruneReport
from ditprune.report_page import save_page
from ditprune.targets import PruneTarget
from ditprune.tensorboard import write_run

PACKAGES = ("ditprune", "torch", "lightning", "diffusers")
NUM_PAIRS = 12
"""Images of each model that are shown side by side: the first ones, and as many of the worst."""


class ReportCallback(L.Callback):
    """Writes the run folder when a fit or a validation has pruned.

    `report.html`, to look at; `report.md` and `report.json`; `masks.safetensors`; the pruned model
    in diffusers' layout, dense with zeros, with `pruning_config.json` beside its weights; where a
    granularity grouped rows, heat maps with the clusters; where importance was measured, a figure
    of it; TensorBoard's scalars, figures, image pairs and hyperparameters.
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
            importance = importance_of(trainer)
            clustered = demand_callback(trainer, GranularityCallback).clustered
            figures = dict(
                run_figures(self.report.plan.layers, importance, clustered, self.report.predictions)
            )
            pairs = pairs_of(trainer)
            self.report.save(folder)
            save_page(folder / "report.html", self.report, figures, pairs)
            self._save_model(trainer, pl_module, folder)
            save_clusters(clustered, folder)
            save_importance_figure(importance, folder)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    step, parts = step_of(trainer), dict(self.report.recipe)
                    write_run(logger.experiment, self.report, figures, pairs, step)
                    logger.log_hyperparams(parts, self.report.scalars(), step)
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

    def _make_report(self, trainer: L.Trainer) -> PruneReport:
        pruner = demand_callback(trainer, PruneCallback)
        granularity = demand_callback(trainer, GranularityCallback)
        evaluation = find_callback(trainer, EvaluationCallback)
        results = evaluation.results if evaluation else None
        prediction = find_callback(trainer, PredictionCallback)
        assert granularity.plan is not None
        assert granularity.masks is not None
        return PruneReport(
            recipe={"family": repr(pruner.family), **granularity.recipe(pruner).parts()},
            plan=granularity.plan,
            mask_hash=granularity.masks.hash(),
            features=evaluation.features if evaluation else "",
            protocols=results.protocol["metrics"] if results else (),
            num_samples=evaluation.num_samples if evaluation else 0,
            seeds=evaluation.seeds if evaluation else (),
            conditions=results.protocol["conditions"] if results else "",
            data=results.protocol["data"] if results else "",
            reference=results.protocol["reference"] if results else "",
            dense=(evaluation and evaluation.dense) or {},
            pruned=(evaluation and evaluation.pruned) or {},
            per_image=results.per_image() if results else {},
            predictions=prediction.errors if prediction else (),
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


def pairs_of(trainer: L.Trainer) -> dict[str, list[Pair]]:
    """Return rows of image pairs by title: none, where not both models were sampled."""
    evaluation = find_callback(trainer, EvaluationCallback)
    if not (evaluation and evaluation.dense_samples and evaluation.pruned_samples):
        return {}
    plan = evaluation.plan(trainer)
    samples = PairedSamples(plan, evaluation.dense_samples, evaluation.pruned_samples)
    worst = f"worst pairs by {samples.measure.partition('/')[0]}"
    return {"first pairs": samples.first(NUM_PAIRS), worst: samples.worst(NUM_PAIRS)}


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
