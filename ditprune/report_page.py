"""A report as one file for a browser: `report.html`, which loads nothing and runs nothing."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ditprune.atomic import writing
from ditprune.chunks import as_picture
from ditprune.pairs import Pair
from ditprune.report import (
    ABOUT_INTERVALS,
    ABOUT_PREDICTIONS,
    NOT_MEASURED,
    PruneReport,
    layer_table,
    show,
)

SIDE = 256
"""Pixels of an image's longer side; larger ones would make the file too large to send."""
SMALL = 64
"""Images up to here are enlarged and kept exactly: single pixels matter there."""


def save_page(
    path: Path,
    report: PruneReport,
    figures: Mapping[str, Figure],
    pairs: Mapping[str, Sequence[Pair]],
) -> None:
    """Write the page."""
    with writing(path) as draft:
        draft.write_text(page_of(report, figures, pairs), encoding="utf-8")


def page_of(
    report: PruneReport, figures: Mapping[str, Figure], pairs: Mapping[str, Sequence[Pair]]
) -> str:
    """Return the page.

    Args:
        report: what it tells.
        figures: by name, as `layers/sparsity`.
        pairs: rows of image pairs by title.
    """
    # Prompts and names come from anywhere: whatever is put in is escaped.
    pages = Environment(
        loader=PackageLoader("ditprune", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(embedded=embedded, thumbnail=thumbnail, drawn=drawn, show=show)
    config = {name: x for name, x in report.pruning_config().items() if name != "layers"}
    return pages.get_template("report_page.html").render(
        report=report,
        figures={name.replace("_", " ").replace("/", ": "): x for name, x in figures.items()},
        pairs=pairs,
        layers=layer_table(report.plan.layers),
        config=json.dumps(config, indent=2, ensure_ascii=False),
        about_intervals=ABOUT_INTERVALS,
        about_predictions=ABOUT_PREDICTIONS,
        not_measured=NOT_MEASURED,
    )


def thumbnail(image: UInt8[Tensor, "c h w"]) -> Image.Image:
    """Return an image of a size to look at."""
    picture = as_picture(image)
    longer = max(picture.size)
    if longer > SMALL:
        picture.thumbnail((SIDE, SIDE))
        return picture
    scale = 2 * SMALL // longer
    return picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)


def drawn(figure: Figure) -> Image.Image:
    """Return a figure in 256 colours, which are all that it needs."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer).convert("RGB").quantize(256)


def embedded(picture: Image.Image) -> str:
    """Return a picture as the address that holds it: a large photograph as JPEG, else as PNG."""
    buffer = io.BytesIO()
    kind = "png" if picture.mode == "P" or max(picture.size) <= 2 * SMALL else "jpeg"
    picture.save(buffer, format=kind, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
