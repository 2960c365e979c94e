"""Runs a study of many recipes on one model, when validation starts."""

from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.markdown import Markdown

from ditprune.atomic import demand_writable
from ditprune.callbacks.evaluate import EvaluationCallback
from ditprune.callbacks.granularity import GranularityCallback
from ditprune.callbacks.lookup import callbacks_of, demand_callback, run_folder
from ditprune.callbacks.prune import PruneCallback
from ditprune.callbacks.sources import seeded_source_of
from ditprune.distributed import barrier, rank
from ditprune.families import Family
from ditprune.find import demand_family, find_transformer
from ditprune.granularity import NofM
from ditprune.plots import save_curves
from ditprune.recipe import Recipe
from ditprune.study import Bench, Result, Study, run
from ditprune.study_report import StudyReport
from ditprune.tensorboard import write_study


class StudyCallback(L.Callback):
    """Prunes and measures by every method, at every sparsity, from every calibration seed.

    Each result is a file; what is there already is not run again. An EvaluationCallback says how
    images are drawn and measured. The model is dense again at the end.
    """

    results: Sequence[Result] = ()

    def __init__(
        self,
        methods: dict[str, Recipe],
        sparsities: Sequence[float] = (0.5,),
        patterns: Sequence[NofM] = (),
        calibration_seeds: Sequence[int] = (0, 1, 2),
        family: Family | None = None,
        module: str | None = None,
    ) -> None:
        """Choose what is compared.

        Args:
            methods: recipes by name; their own sparsities are not used.
            sparsities: at which each method is run.
            patterns: N:M patterns at which each method is run, in place of its granularity.
            calibration_seeds: of the calibration samples; tables give mean and standard
                deviation over them.
            family: where the transformer's layers are and how to call it; None is the one of
                the transformer's class.
            module: dotted path of the transformer inside the LightningModule, or of one inside
                a pipeline that it holds; None finds it.
        """
        self.study = Study(methods, tuple(sparsities), tuple(patterns), tuple(calibration_seeds))
        self.family = family
        self.module = module

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check what can be checked before the long work."""
        demand_dense_model(trainer, stage)
        demand_callback(trainer, EvaluationCallback)
        seeded_source_of(trainer)
        folder = run_folder(trainer)
        if rank() == 0:
            demand_writable(folder)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run what has not been run, and write the report."""
        evaluation = demand_callback(trainer, EvaluationCallback)
        evaluation.before_pruning(trainer, pl_module)
        with torch.inference_mode(False):
            self.results = run(self.study, self._bench(trainer, pl_module, evaluation))
        report = StudyReport(
            results=self.results,
            dense=evaluation.dense or {},
            num_samples=evaluation.num_samples,
            features=evaluation.features,
            protocols=[metric.protocol for metric in evaluation.metrics],
            balances=self.study.balances(),
        )
        folder = run_folder(trainer)
        if rank() == 0:
            report.save(folder)
            save_curves(report, folder)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    write_study(logger.experiment, report)
            Console().print(Markdown(report.to_markdown()), f"written to {folder}")
        barrier()

    def _bench(
        self, trainer: L.Trainer, pl_module: L.LightningModule, evaluation: EvaluationCallback
    ) -> Bench:
        source, found = seeded_source_of(trainer), find_transformer(pl_module, self.module)
        return Bench(
            model=found.model,
            family=self.family or demand_family(found),
            scheduler=getattr(pl_module, "scheduler", None),
            samples=lambda seed: source.calibration_dataloader(seed=seed),
            measure=lambda: evaluation.measure_pruned(trainer, pl_module),
            identity=evaluation.identity(trainer),
            folder=run_folder(trainer),
        )


def demand_dense_model(trainer: L.Trainer, stage: str) -> None:
    """Raise a ValueError if something else would change the model that all methods start from."""
    if stage != "validate":
        raise ValueError(
            "a study takes the model as it is and trains nothing: it runs in trainer.validate "
            "(`ditprune study`), and this is trainer." + stage
        )
    others = (PruneCallback, GranularityCallback)
    found = [type(c).__name__ for c in callbacks_of(trainer) if isinstance(c, others)]
    if found:
        raise ValueError(
            "a study prunes the dense model itself, by each of its methods, and the trainer has "
            f"{' and '.join(found)} too, which would prune it once more: leave them out, and make "
            "their recipe one of the methods"
        )
