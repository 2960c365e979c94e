"""The `ditprune` command: LightningCLI with one more subcommand."""

import sys
import warnings
from types import TracebackType
from typing import Any

import lightning as L
from jsonargparse import auto_cli
from lightning.pytorch.cli import LightningCLI
from rich.console import Console

from ditprune.atomic import demand_writable
from ditprune.callbacks import GranularityCallback, PruneCallback, StudyCallback
from ditprune.callbacks.lookup import demand_callback, run_folder
from ditprune.convert import convert
from ditprune.distributed import leave_group
from ditprune.folder import prune_folder_by_file
from ditprune.layers import target_weights
from ditprune.plan import layer_table, plan
from ditprune.score import score
from ditprune.statistics_file import statistics

WITHOUT_MODEL = {
    "score": score,
    "convert": convert,
    "statistics": statistics,
    "prune-folder": prune_folder_by_file,
}
"""What takes files alone, and no trainer."""
EPILOG = (
    "Without model and trainer, from files alone: "
    + ", ".join(f"ditprune {verb}" for verb in WITHOUT_MODEL)
    + "; each has a --help of its own."
)


class PruneTrainer(L.Trainer):
    """A trainer that can also prune, if it has a PruneCallback and a GranularityCallback."""

    def prune(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        dry_run: bool = False,
        stats: str | None = None,
    ) -> None:
        """Calibrate, prune, and validate the pruned model against the dense one.

        Args:
            model: holds the transformer.
            datamodule: has calibration samples, and what validation needs.
            dry_run: print what every layer would give, and stop.
            stats: run folder whose calibration is used again.
        """
        pruner = demand_callback(self, PruneCallback)
        pruner.stats = stats or pruner.stats
        if dry_run:
            self.show_plan(model)
            return
        self.validate(model, datamodule=datamodule)
        if demand_callback(self, GranularityCallback).masks is None:
            raise ValueError(
                "nothing was pruned, because validation had no batch to run on; give the "
                "datamodule a val_dataloader, and limit_val_batches above 0"
            )

    def study(
        self, model: L.LightningModule, datamodule: L.LightningDataModule | None = None
    ) -> None:
        """Prune by many recipes, and compare what is left of the images.

        Args:
            model: holds the transformer.
            datamodule: has calibration samples of any seed, and what evaluation needs.
        """
        demand_callback(self, StudyCallback)
        self.validate(model, datamodule=datamodule)

    def show_plan(self, model: L.LightningModule) -> None:
        """Print what every layer would give, and both sparsities."""
        pruner = demand_callback(self, PruneCallback)
        transformer = pruner.transformer(model)
        weights = target_weights(transformer, pruner.family)
        asked = demand_callback(self, GranularityCallback)
        asked.before_calibration(weights)
        planned = plan(transformer, weights, asked.granularity, asked.sparsity, asked.budget)
        console = Console()
        console.print(layer_table(planned.layers))
        console.print(planned.totals(), highlight=False)


class PruneCLI(LightningCLI):
    """LightningCLI with `prune` and `study` beside `fit` and `validate`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands, and the arguments that come from elsewhere."""
        subcommands = LightningCLI.subcommands()
        return {
            "prune": {"model", "datamodule"},
            "study": {"model", "datamodule"},
            **{name: subcommands[name] for name in ("validate", "fit")},
        }

    def before_prune(self) -> None:
        """Check the run folder now, unless nothing will be written."""
        if not self.config.prune.dry_run:
            demand_writable(run_folder(self.trainer))

    def before_validate(self) -> None:
        """Check the run folder now."""
        demand_writable(run_folder(self.trainer))

    before_fit = before_study = before_validate


def main(args: list[str] | None = None) -> None:
    """Run the command; mistakes of the user are answered by a paragraph, not by a traceback."""
    for noise in ("LightningCLI's args parameter", ".*isinstance.treespec, LeafSpec"):
        warnings.filterwarnings("ignore", message=noise)
    arguments = sys.argv[1:] if args is None else args
    try:
        if arguments and arguments[0] in WITHOUT_MODEL:
            verb: Any = WITHOUT_MODEL[arguments[0]]
            auto_cli(verb, args=arguments[1:])
            return
        PruneCLI(
            trainer_class=PruneTrainer,
            parser_kwargs={"epilog": EPILOG},
            save_config_kwargs={"overwrite": True},
            args=["--dry_run=true" if a == "--dry-run" else a for a in arguments],
        )
        leave_group()
    except ValueError as error:
        ours = written_for_user(error)
        if ours is None:
            raise
        sys.exit(f"ditprune: {ours}")


def written_for_user(error: BaseException | None) -> BaseException | None:
    """Return the ValueError that ditprune itself raised, if one is the cause of this one."""
    while error is not None:
        if isinstance(error, ValueError) and raised_by_ditprune(error.__traceback__):
            return error
        error = error.__cause__ or error.__context__
    return None


def raised_by_ditprune(traceback: TracebackType | None) -> bool:
    """Tell whether the innermost frame is ditprune's own."""
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = str(traceback.tb_frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] == "ditprune"


if __name__ == "__main__":
    main()
