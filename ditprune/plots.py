"""What a person looks at: layers over depth, and images side by side."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torchvision.utils import make_grid

from ditprune.atomic import writing
from ditprune.plan import LayerPlan
from ditprune.report import DIRECTION, LOWER_IS_BETTER
from ditprune.study_report import StudyReport

MARKERS = "osv^D*PXhd"


def sparsity_figure(layers: Sequence[LayerPlan]) -> Figure:
    """Draw the sparsity of every layer: a row for each role, a column for each block."""
    roles = list(dict.fromkeys(layer.target.role.value for layer in layers))
    num_blocks = max(layer.target.block for layer in layers) + 1
    cells = np.full((len(roles), num_blocks), np.nan)
    for layer in layers:
        cells[roles.index(layer.target.role.value), layer.target.block] = layer.sparsity
    figure = Figure(figsize=(3 + 0.45 * num_blocks, 1.2 + 0.4 * len(roles)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set(xlabel="block", xticks=range(num_blocks), yticks=range(len(roles)), yticklabels=roles)
    for (row, column), value in np.ndenumerate(cells):
        if np.isfinite(value):
            axes.text(column, row, f"{value:.0%}", ha="center", va="center", size=7, color="white")
    figure.colorbar(image, label="sparsity")
    return figure


def row_variation_figure(layers: Sequence[LayerPlan]) -> Figure:
    """Draw how much the rows of every layer differ: filled where it is pruned row by row."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, role in enumerate(dict.fromkeys(layer.target.role for layer in layers)):
        mine = [layer for layer in layers if layer.target.role is role]
        axes.scatter(
            [layer.target.block for layer in mine],
            [layer.row_variation or 0.0 for layer in mine],
            edgecolors=f"C{number}",
            facecolors=[f"C{number}" if x.granularity == "row" else "none" for x in mine],
            label=role.value,
        )
    axes.set(
        xlabel="block",
        ylabel="squared coefficient of variation\nof the rows' mean scores",
        yscale="log",
        title="filled: pruned per row; open: otherwise",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right upper")
    return figure


def quality_figure(report: StudyReport, metric: str) -> Figure:
    """Draw a metric against the setting, a curve for each method, with deviations as bars."""
    settings, methods = report.settings(), report.methods()
    joined = np.array([setting.endswith("%") for setting in settings])  # patterns stand alone
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(methods):
        values = [report.values(method, setting, metric) for setting in settings]
        means, bars = np.array([statistics.fmean(v) for v in values]), map(deviation, values)
        # Side by side, or the bars would hide each other.
        places = np.arange(len(settings)) + 0.4 * ((number + 0.5) / len(methods) - 0.5)
        color, marker = f"C{number % 10}", MARKERS[(number + number // 10) % len(MARKERS)]
        style: dict[str, Any] = {"fmt": marker, "markersize": 5, "capsize": 2, "color": color}
        axes.errorbar(places, means, list(bars), label=method, **style)
        axes.plot(places[joined], means[joined], color=color, linewidth=0.8)
    if metric in report.dense:
        dense = statistics.fmean(report.dense[metric])
        axes.axhline(dense, color="black", linestyle=":", label="dense")
    axes.set(xticks=range(len(settings)), xticklabels=settings, ylabel=metric)
    axes.set_xlabel("sparsity of the targets, or pattern")
    if DIRECTION.get(metric) == LOWER_IS_BETTER:
        axes.set_yscale("log")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation (n - 1), or 0 where there is none."""
    known = len(values) > 1 and all(map(math.isfinite, values))
    return statistics.stdev(values) if known else 0.0


def save_curves(report: StudyReport, folder: Path) -> None:
    """Write a PNG for each metric."""
    for metric in report.metrics():
        with writing(folder / f"{metric}.png") as draft:
            quality_figure(report, metric).savefig(draft, format="png", dpi=150)


def heat_map(
    score: Float[Tensor, "out in"], labels: Int[Tensor, " out"], title: str, most: int = 512
) -> Figure:
    """Draw log scores, rows sorted by cluster and lines between clusters; large ones thinned."""
    order = labels.argsort(stable=True)
    rows, columns = (max(1, math.ceil(side / most)) for side in score.shape)
    logs = score[order][::rows, ::columns].clamp(min=1e-12).log10()
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    low = float(np.quantile(logs.numpy(), 0.02))
    bottom, right = logs.shape[0] * rows - 0.5, logs.shape[1] * columns - 0.5
    style: dict[str, Any] = {
        "aspect": "auto",
        "cmap": "magma",
        "extent": (-0.5, right, bottom, -0.5),
    }
    image = axes.imshow(logs.numpy(), vmin=low, **style)
    edges = np.ceil(np.cumsum(labels.bincount().numpy())[:-1] / rows) * rows  # of rows shown
    axes.hlines(edges - 0.5, -0.5, right, colors="cyan", linewidth=0.8)
    axes.set(xlabel="input channel", ylabel="output channel, by cluster", title=title)
    figure.colorbar(image, label="log10 of the score")
    return figure


def pair_grid(
    dense: UInt8[Tensor, "n c h w"], pruned: UInt8[Tensor, "n c h w"], num_pairs: int = 20
) -> UInt8[Tensor, "3 height width"]:
    """Return an image grid: dense images above the pruned model's, from the same noise."""
    num_columns = min(10, num_pairs, len(dense))
    num_pairs = min(num_pairs, len(dense)) // num_columns * num_columns
    rows = [
        half[start : start + num_columns]
        for start in range(0, num_pairs, num_columns)
        for half in (dense, pruned)
    ]
    images = torch.cat(rows)
    scale = max(1, 64 // images.shape[-1])  # tiny images would be specks on the screen
    images = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    return make_grid(images, nrow=num_columns, padding=2, pad_value=128)
