"""What a person looks at: layers over depth, and images side by side."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torchvision.utils import make_grid

from ditprune.plan import LayerPlan


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
