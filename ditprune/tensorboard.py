"""The TensorBoard page of a run: layers over depth, and images side by side."""

import statistics
from collections.abc import Mapping, Sequence

from jaxtyping import UInt8
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ditprune.clustered import ClusteredLayer
from ditprune.importance import Importance
from ditprune.plots import (
    clusters_figure,
    importance_figure,
    pair_grid,
    row_variation_figure,
    sparsity_figure,
    study_figures,
)
from ditprune.report import PruneReport
from ditprune.study_report import StudyReport
from ditprune.targets import PruneTarget


def write_layers(page: SummaryWriter, report: PruneReport) -> None:
    """Write the report, and what every layer gave: as figures, and as curves over the blocks."""
    page.add_text("report", report.to_markdown())
    page.add_figure("layers/sparsity", sparsity_figure(report.plan.layers))
    page.add_figure("layers/row_variation", row_variation_figure(report.plan.layers))
    for layer in report.plan.layers:
        place, block = layer.target.place, layer.target.block
        page.add_scalar(f"sparsity_by_block/{place}", layer.sparsity, block)
        page.add_scalar(f"row_variation_by_block/{place}", layer.row_variation or 0.0, block)


def write_importance(page: SummaryWriter, importance: Mapping[PruneTarget, Importance]) -> None:
    """Write what errors of each layer cost, if that was measured."""
    if importance:
        page.add_figure("layers/importance", importance_figure(importance))


def write_clusters(page: SummaryWriter, layers: Sequence[ClusteredLayer]) -> None:
    """Write a heat map of each layer, with the clusters found in it."""
    for layer in layers:
        page.add_figure(f"clusters/{layer.target.role.value}", clusters_figure(layer))


def write_pairs(
    page: SummaryWriter, dense: UInt8[Tensor, "n c h w"], pruned: UInt8[Tensor, "n c h w"]
) -> None:
    """Write images of the dense model above those of the pruned one, from the same noise."""
    page.add_image("images/dense above pruned", pair_grid(dense, pruned))


def write_study(page: SummaryWriter, report: StudyReport) -> None:
    """Write a study's tables and curves, and a line of hyperparameters for each result."""
    page.add_text("study", report.to_markdown())
    for name, figure in study_figures(report):
        page.add_figure(f"study/{name}", figure)
    for result in report.results:
        name = f"{result.method}-{result.setting}-seed{result.seed}".replace(" ", "")
        means = {f"study/{m}": statistics.fmean(v) for m, v in result.metrics.items()}
        means["study/prediction_error"] = result.prediction_error
        parts = {"method": result.method, "setting": result.setting, "seed": result.seed}
        page.add_hparams({**parts, **result.recipe}, means, run_name=name.replace(":", "of"))
