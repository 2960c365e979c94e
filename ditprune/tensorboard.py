"""The TensorBoard page of a run: layers over depth, and images side by side."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from ditprune.pairs import Pair
from ditprune.plots import pairs_figure, study_figures
from ditprune.report import PruneReport
from ditprune.study_report import StudyReport


def write_run(
    page: SummaryWriter,
    report: PruneReport,
    figures: Mapping[str, Figure],
    pairs: Mapping[str, Sequence[Pair]],
    step: int,
) -> None:
    """Write the report, what every layer gave, and image pairs.

    Args:
        page: of the run.
        report: what it tells.
        figures: by name, as `layers/sparsity`.
        pairs: rows of image pairs by title.
        step: where on the axis; layers are curves over the blocks.
    """
    page.add_text("report", report.to_markdown(), step)
    for layer in report.plan.layers:
        place, block = layer.target.place, layer.target.block
        page.add_scalar(f"sparsity_by_block/{place}", layer.sparsity, block)
        page.add_scalar(f"row_variation_by_block/{place}", layer.row_variation or 0.0, block)
    drawn = {f"images/{title}": pairs_figure(row) for title, row in pairs.items()}
    for name, figure in {**figures, **drawn}.items():
        page.add_figure(name, figure, step)


def write_study(page: SummaryWriter, report: StudyReport) -> None:
    """Write a study's tables and curves, and a line of hyperparameters for each result."""
    page.add_text("study", report.to_markdown())
    for name, figure in study_figures(report):
        page.add_figure(f"study/{name}", figure)
    for method in report.methods():
        write_method(page, report, method)
    for result in report.results:
        name = f"{result.method}-{result.setting}-seed{result.seed}".replace(" ", "")
        means = {f"study/{m}": statistics.fmean(v) for m, v in result.metrics.items()}
        means["study/prediction_error"] = result.prediction_error
        parts = {"method": result.method, "setting": result.setting, "seed": result.seed}
        step = percent(result.target_sparsity)
        page.add_hparams({**parts, **result.recipe}, means, None, name.replace(":", "of"), step)


def write_method(page: SummaryWriter, report: StudyReport, method: str) -> None:
    """Write a method's metrics over the sparsity, as a run of its own: runs share their charts.

    Patterns stand apart: 2:4 is not what 50 % is.
    """
    with SummaryWriter(Path(page.log_dir) / method.replace("/", " ")) as curves:
        for setting in report.settings():
            apart = "" if setting.endswith("%") else f" at {setting.replace(':', ' of ')}"
            sparsity = statistics.fmean(r.target_sparsity for r in report.cell(method, setting))
            for metric in report.metrics():
                if values := report.values(method, setting, metric):
                    mean = statistics.fmean(values)
                    curves.add_scalar(f"over sparsity/{metric}{apart}", mean, percent(sparsity))


def percent(sparsity: float) -> int:
    """Return where on TensorBoard's axis of whole numbers a sparsity belongs."""
    return round(100 * sparsity)
