"""The TensorBoard page of a run: layers over depth, and images side by side."""

import statistics

from jaxtyping import UInt8
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ditprune.plots import pair_grid, quality_figure, row_variation_figure, sparsity_figure
from ditprune.report import PruneReport
from ditprune.study_report import StudyReport


def write_layers(page: SummaryWriter, report: PruneReport) -> None:
    """Write the report, and what every layer gave: as figures, and as curves over the blocks."""
    page.add_text("report", report.to_markdown())
    page.add_figure("layers/sparsity", sparsity_figure(report.plan.layers))
    page.add_figure("layers/row_variation", row_variation_figure(report.plan.layers))
    for layer in report.plan.layers:
        role, block = layer.target.role.value, layer.target.block
        page.add_scalar(f"sparsity_by_block/{role}", layer.sparsity, block)
        page.add_scalar(f"row_variation_by_block/{role}", layer.row_variation or 0.0, block)


def write_pairs(
    page: SummaryWriter, dense: UInt8[Tensor, "n c h w"], pruned: UInt8[Tensor, "n c h w"]
) -> None:
    """Write images of the dense model above those of the pruned one, from the same noise."""
    page.add_image("images/dense above pruned", pair_grid(dense, pruned))


def write_study(page: SummaryWriter, report: StudyReport) -> None:
    """Write a study's tables and curves, and a line of hyperparameters for each result."""
    page.add_text("study", report.to_markdown())
    for metric in report.metrics():
        page.add_figure(f"study/{metric}", quality_figure(report, metric))
    for result in report.results:
        name = f"{result.method}-{result.setting}-seed{result.seed}".replace(" ", "")
        means = {f"study/{m}": statistics.fmean(v) for m, v in result.metrics.items()}
        parts = {"method": result.method, "setting": result.setting, "seed": result.seed}
        page.add_hparams({**parts, **result.recipe}, means, run_name=name.replace(":", "of"))
