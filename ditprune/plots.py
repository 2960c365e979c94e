"""What a person looks at: layers over depth, and images side by side."""

import math
import shutil
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ditprune.atomic import writing
from ditprune.clustered import ClusteredLayer
from ditprune.importance import Importance
from ditprune.pairs import Pair
from ditprune.plan import LayerPlan
from ditprune.prediction import LevelError
from ditprune.report import LOWER_IS_BETTER, direction
from ditprune.study_report import StudyReport
from ditprune.targets import PruneTarget, Role

MARKERS = "osv^D*PXhd"


def sparsity_figure(layers: Sequence[LayerPlan]) -> Figure:
    """Draw the sparsity of every layer: a row for each place inside blocks, a column for each."""
    places = list(dict.fromkeys(layer.target.place for layer in layers))
    num_blocks = max(layer.target.block for layer in layers) + 1
    cells = np.full((len(places), num_blocks), np.nan)
    for layer in layers:
        cells[places.index(layer.target.place), layer.target.block] = layer.sparsity
    figure = Figure(figsize=(3 + 0.45 * num_blocks, 1.2 + 0.4 * len(places)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set(xlabel="block", xticks=range(num_blocks))
    axes.set_yticks(range(len(places)), places)
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


def importance_figure(importance: Mapping[PruneTarget, Importance]) -> Figure:
    """Draw what a unit of each layer's output error costs: the mean of G's diagonal.

    A color for each role; layers of one name in all blocks are joined. What costs nothing has no
    place on a logarithmic axis.
    """
    curves: dict[tuple[Role, str], dict[int, float]] = {}
    for target, matrix in importance.items():
        name = target.role, target.place
        curves.setdefault(name, {})[target.block] = matrix.diagonal().mean().item() or math.nan
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    roles = list(dict.fromkeys(role for role, _ in curves))
    lines = {}
    for (role, _), costs in curves.items():
        number = roles.index(role)
        style: dict[str, Any] = {"color": f"C{number % 10}", "marker": MARKERS[number]}
        lines[role.value] = axes.plot(
            list(costs), list(costs.values()), linewidth=0.8, markersize=5, **style
        )[0]
    axes.set(xlabel="block", yscale="log")
    axes.set_ylabel("what a unit of output error\ncosts the images (mean of G's diagonal)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(list(lines.values()), list(lines), loc="outside right upper")
    return figure


def run_figures(
    layers: Sequence[LayerPlan],
    importance: Mapping[PruneTarget, Importance],
    clustered: Sequence[ClusteredLayer],
    predictions: Sequence[LevelError] = (),
) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a run by name: of all layers, and of what else there is."""
    yield "layers/sparsity", sparsity_figure(layers)
    yield "layers/row_variation", row_variation_figure(layers)
    if predictions:
        yield "predictions/error", level_figure(predictions)
    if importance:
        yield "layers/importance", importance_figure(importance)
    for layer in clustered:
        yield f"clusters/{layer.target.role.value}", clusters_figure(layer)


def level_figure(predictions: Sequence[LevelError]) -> Figure:
    """Draw what single steps predict wrongly against their level of noise."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    middles = [(each.low + each.high) / 2 for each in predictions]
    axes.plot(middles, [each.error for each in predictions], marker="o")
    axes.set(xlim=(0, 1), ylim=(0, None))
    axes.set_xlabel("level of noise: 0 is the image, 1 is noise alone")
    axes.set_ylabel("error of the pruned model's prediction,\nrelative to the dense one's")
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
    if direction(metric) == LOWER_IS_BETTER:
        axes.set_yscale("log")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def prediction_figure(report: StudyReport) -> Figure:
    """Draw what images lost against what predictions lost: a point for each method and setting."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(report.methods()):
        cells = [s for s in report.settings() if report.values(method, s, "mse")]
        axes.plot(
            [statistics.fmean(report.prediction_errors(method, s)) for s in cells],
            [statistics.fmean(report.values(method, s, "mse")) for s in cells],
            color=f"C{number % 10}",
            marker=MARKERS[(number + number // 10) % len(MARKERS)],
            linestyle="",
            label=method,
        )
    axes.set(xscale="log", yscale="log", ylabel="mse of the images to the dense model's")
    axes.set_xlabel("prediction error of single denoising steps")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def balance_figure(report: StudyReport) -> Figure:
    """Draw what images and predictions lost against the balance of weight and activation."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    methods = sorted(report.balances, key=report.balances.__getitem__)
    alphas = [report.balances[method] for method in methods]
    left, right = figure.subplots(1, 2)
    for setting in report.settings():
        for axes, of in (
            (left, lambda m, s: report.values(m, s, "mse")),
            (right, report.prediction_errors),
        ):
            values = [of(method, setting) for method in methods]
            means = [statistics.fmean(v) for v in values]
            axes.errorbar(alphas, means, list(map(deviation, values)), capsize=2, label=setting)
    left.set(title="images", ylabel="mse to the dense model's")
    right.set(title="single denoising steps", ylabel="relative prediction error")
    for axes in (left, right):
        axes.set(xlabel="alpha = n/m of |W|$^m$ RMS(X)$^n$", yscale="log")
    left.legend(fontsize="small")
    return figure


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation (n - 1), or 0 where there is none."""
    known = len(values) > 1 and all(map(math.isfinite, values))
    return statistics.stdev(values) if known else 0.0


def study_figures(report: StudyReport) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a study by name: one for each metric, and those of two errors."""
    for metric in report.metrics():
        yield metric, quality_figure(report, metric)
    if "mse" in report.metrics():
        yield "prediction", prediction_figure(report)
        if report.balances:
            yield "alpha", balance_figure(report)


def save_curves(report: StudyReport, folder: Path) -> None:
    """Write a PNG for each figure."""
    for name, figure in study_figures(report):
        save(figure, folder / f"{name.replace('/', '-')}.png")


def save_importance_figure(importance: Mapping[PruneTarget, Importance], folder: Path) -> None:
    """Write `importance.png`, if importance was measured."""
    if importance:
        save(importance_figure(importance), folder / "importance.png")


def save_clusters(layers: Sequence[ClusteredLayer], folder: Path) -> None:
    """Write a PNG for each layer into `clusters`, in place of those of an earlier run."""
    shutil.rmtree(folder / "clusters", ignore_errors=True)
    for layer in layers:
        save(clusters_figure(layer), folder / "clusters" / f"{layer.target.role.value}.png")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    with writing(path) as draft:
        figure.savefig(draft, format="png", dpi=150)


def clusters_figure(layer: ClusteredLayer) -> Figure:
    """Draw the scores of a layer and the clusters found in it."""
    clusters = layer.clusters
    return heat_map(layer.score, clusters.row_labels, clusters.column_labels, layer.title())


def heat_map(
    score: Float[Tensor, "out in"],
    row_labels: Int[Tensor, " out"],
    column_labels: Int[Tensor, " in"],
    title: str,
    most: int = 512,
) -> Figure:
    """Draw log scores, by cluster and lines between clusters, and row means; large ones thinned."""
    ordered = score[row_labels.argsort(stable=True)][:, column_labels.argsort(stable=True)]
    rows, columns = (max(1, math.ceil(side / most)) for side in score.shape)
    logs = ordered[::rows, ::columns].clamp(min=1e-12).log10()
    means = ordered.mean(1).clamp(min=1e-12).log10()
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    low = float(np.quantile(logs.numpy(), 0.02))
    bottom, right = logs.shape[0] * rows - 0.5, logs.shape[1] * columns - 0.5
    style: dict[str, Any] = {
        "aspect": "auto",
        "cmap": "magma",
        "extent": (-0.5, right, bottom, -0.5),
    }
    image = axes.imshow(logs.numpy(), vmin=low, **style)
    line: dict[str, Any] = {"colors": "cyan", "linewidth": 0.8}
    axes.hlines(edges(row_labels, rows), -0.5, right, **line)
    axes.vlines(edges(column_labels, columns), -0.5, bottom, **line)
    axes.set(xlabel="input channel", ylabel="output channel, by cluster")
    figure.colorbar(image, ax=[axes, beside], label="log10 of the score")
    beside.scatter(means.numpy(), np.arange(len(means)), s=2, c=row_labels.sort()[0], cmap="tab10")
    beside.set(xlabel="log10 of the\nrow's mean")
    figure.suptitle(title)
    return figure


def edges(labels: Int[Tensor, " members"], step: int) -> Float64[np.ndarray, " edges"]:
    """Return where clusters end, if every step-th member is shown."""
    return np.ceil(np.cumsum(labels.bincount().numpy())[:-1] / step) * step - 0.5


def pairs_figure(pairs: Sequence[Pair]) -> Figure:
    """Draw images of the dense model beside those of the pruned one, with what was asked for."""
    num_columns = min(4, len(pairs))
    num_rows = math.ceil(len(pairs) / num_columns)
    figure = Figure(figsize=(3 * num_columns, 0.3 + 2.2 * num_rows), layout="constrained")
    figure.suptitle("left: dense; right: pruned", fontsize=9)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes, pair in zip_longest(grid.flat, pairs):
        draw_pair(axes, pair) if pair else axes.set_axis_off()
    return figure


def draw_pair(axes: Axes, pair: Pair) -> None:
    """Draw both images, the dense model's on the left."""
    gap = torch.full((3, pair.dense.shape[1], max(1, pair.dense.shape[2] // 16)), 255)
    both = [image.expand(3, -1, -1) for image in (pair.dense, pair.pruned)]
    axes.imshow(torch.cat([both[0], gap, both[1]], 2).permute(1, 2, 0).numpy())
    # A prompt may hold $ signs, which are no formulas.
    short = textwrap.fill(textwrap.shorten(pair.asked, 100), 36)
    axes.set_title(short, fontsize=8, parse_math=False)
    axes.set(xlabel=pair.origin, xticks=[], yticks=[])
    axes.xaxis.label.set_fontsize(7)
