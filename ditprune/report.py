"""What was removed where, and what it cost: the only thing that formats results."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ditprune.atomic import writing
from ditprune.bootstrap import NUM_RESAMPLES, Summary
from ditprune.measurement import MANY_IMAGES, Measured
from ditprune.plan import LayerPlan, Plan
from ditprune.prediction import LevelError
from ditprune.results import Summaries, measured_entry, summaries_entry

LOWER_IS_BETTER = "↓"
HIGHER_IS_BETTER = "↑"
DIRECTION = dict.fromkeys(
    ("fid", "fid_infinity", "sfid", "kid", "kid_std", "cmmd", "mse", "lpips"), LOWER_IS_BETTER
)
"""Which way is better; what is not named is better higher."""


def direction(name: str) -> str:
    """Return the arrow of a metric, whose name may tell its protocol behind a slash."""
    return DIRECTION.get(name.partition("/")[0], HIGHER_IS_BETTER)


def headings(names: Collection[str]) -> dict[str, str]:
    """Return how tables name metrics, with an arrow: by protocol only where two are of a kind."""
    kinds = Counter(name.partition("/")[0] for name in names)
    short = {name: name.partition("/")[0] for name in names}
    return {n: f"{kind if kinds[kind] == 1 else n} {direction(n)}" for n, kind in short.items()}


BIASED = frozenset({"fid", "sfid"})
"""Distances that few images make larger."""
TOLD = {
    "saliency": "scored by",
    "granularity": "compared within",
    "budget": "shared out by",
    "importance": "their errors weighed by",
    "repair": "the kept ones repaired by",
}
"""What the parts of a recipe do to weights."""
NOT_MEASURED = "Not measured: add an EvaluationCallback and run `trainer.validate`."
ABOUT_INTERVALS = (
    f"95 % of {NUM_RESAMPLES:,} bootstrap samples of the prompts have their mean in the interval; "
    "the median is that of the images."
)
ABOUT_PREDICTIONS = (
    "Of single denoising steps, on samples that no method was given: the squared error beside the "
    "dense model's prediction, relative to that prediction's square."
)
MEASURED = (
    "features",
    "protocols",
    "num_samples",
    "seeds",
    "conditions",
    "data",
    "reference",
    "metrics",
    "per_image",
    "predictions",
    "cost",
)
"""What a report tells of images and costs, and not of the pruning."""


class Table(NamedTuple):
    """Cells to read, whatever they are written in."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class PruneReport:
    """The result of a run: the recipe, what every layer gave, what the images are worth."""

    recipe: Mapping[str, str]
    plan: Plan
    mask_hash: str
    features: str = ""
    """The network whose features are compared, with a hash of its weights."""
    protocols: Sequence[str] = ()
    """The definition of every metric of those features."""
    num_samples: int = 0
    seeds: Sequence[int] = ()
    conditions: str = ""
    """Digest of what was asked for: classes or prompts."""
    data: str = ""
    """The data set and which of its images, if they are of one."""
    reference: str = ""
    """How many real images were compared with, and a digest of them."""
    dense: Measured = field(default_factory=dict)
    """Values of each metric, one for each seed."""
    pruned: Measured = field(default_factory=dict)
    per_image: Mapping[str, Summaries] = field(default_factory=dict)
    """Of what every image has for itself: means with intervals, and medians, of each model."""
    predictions: Sequence[LevelError] = ()
    """What the pruned model predicts wrongly in single steps."""
    cost: Mapping[str, float | str] = field(default_factory=dict)
    """Times in seconds, peak memory in MiB, library versions: what differs between equal runs."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, ready for JSON."""
        return {
            "recipe": dict(self.recipe),
            "target_set": self.plan.target_set(),
            "num_target_weights": self.plan.num_target_weights,
            "num_model_weights": self.plan.num_model_weights,
            "num_pruned": self.plan.num_pruned,
            "target_sparsity": self.plan.target_sparsity,
            "model_sparsity": self.plan.model_sparsity,
            "mask_hash": self.mask_hash,
            "features": self.features,
            "protocols": list(self.protocols),
            "num_samples": self.num_samples,
            "seeds": list(self.seeds),
            "conditions": self.conditions,
            "data": self.data,
            "reference": self.reference,
            "metrics": {
                "dense": measured_entry(self.dense),
                "pruned": measured_entry(self.pruned),
            },
            "per_image": {
                title: summaries_entry(found) for title, found in self.per_image.items() if found
            },
            "predictions": [error._asdict() for error in self.predictions],
            "layers": [layer_entry(layer) for layer in self.plan.layers],
            "cost": dict(self.cost),
        }

    def pruning_config(self) -> dict[str, Any]:
        """Return what identifies the pruning: the report without measurements."""
        return {name: value for name, value in self.to_dict().items() if name not in MEASURED}

    def scalars(self) -> dict[str, float]:
        """Return both sparsities and the mean of every metric, for hyperparameter tables."""
        means = {
            f"{name}/{model}": statistics.fmean(values)
            for model, measured in (("dense", self.dense), ("pruned", self.pruned))
            for name, values in measured.items()
        }
        sparsities = {
            "sparsity/targets": self.plan.target_sparsity,
            "sparsity/model": self.plan.model_sparsity,
        }
        return {**sparsities, **means}

    def summary(self) -> str:
        """Return the facts and the result table."""
        return f"{self._facts()}\n\n{self._images()}\n"

    def to_markdown(self) -> str:
        """Return the report as a page to read."""
        sections = {
            "# Pruning report": self._facts(),
            "## Images": self._images(),
            **({"## Predictions": self._predictions()} if self.predictions else {}),
            "## Cost": bullets(f"{name}: {show(value)}" for name, value in self.cost.items()),
            "## Layers": layer_table(self.plan.layers).to_markdown(),
        }
        return "\n".join(f"{title}\n\n{text}\n" for title, text in sections.items())

    def save(self, folder: Path) -> None:
        """Write `report.json` and `report.md`."""
        with writing(folder / "report.json") as draft:
            draft.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        with writing(folder / "report.md") as draft:
            draft.write_text(self.to_markdown())

    def sentence(self) -> str:
        """Return the recipe in a sentence."""
        done = [f"{told} {self.recipe[part]}" for part, told in TOLD.items() if self._has(part)]
        return f"{self.plan.target_sparsity:.2%} of the targets' weights pruned: {', '.join(done)}."

    def _has(self, part: str) -> bool:
        return self.recipe.get(part, "None") != "None"

    def facts(self) -> dict[str, str]:
        """Return what was pruned, and what it was measured on."""
        return {
            "target set": self.plan.target_set(),
            "sparsity": self.plan.totals(),
            "images": f"{self.num_samples} for each of {len(self.seeds)} seeds {list(self.seeds)}; "
            "metrics are mean ± standard deviation over the seeds",
            "features": self.features or "none",
            "metrics of them": ", ".join(self.protocols) or "none",
            "metrics of each image": ", ".join(self._per_image_names()) or "none",
            **({"data set": self.data} if self.data else {}),
            "real images": self.reference or "none",
            "mask hash": self.mask_hash,
        }

    def notes(self) -> list[str]:
        """Return what a reader may not conclude."""
        notes = [
            "Zeros are not speed: the pruned model has the dense one's shapes and runs as fast; "
            "zeros are stored and multiplied like other weights."
        ]
        if 0 < self.num_samples < MANY_IMAGES and not BIASED.isdisjoint(self.pruned or self.dense):
            notes.append(
                f"FID is measured on {self.num_samples:,} images: its bias goes as 1/N, so that "
                f"numbers of different N do not compare; those published take {MANY_IMAGES:,} or "
                "more."
            )
        if len(self.seeds) == 1:
            notes.append(
                "From one seed of the noise, nobody knows how far chance moves the metrics."
            )
        return notes

    def metric_table(self) -> Table:
        """Return the metrics of both models."""
        names = headings(dict.fromkeys([*self.dense, *self.pruned]))
        rows = [
            (heading, spread(self.dense.get(name)), spread(self.pruned.get(name)))
            for name, heading in names.items()
        ]
        return Table(("metric", "dense", "pruned"), rows)

    def per_image_table(self) -> Table:
        """Return what every image has for itself, of each model."""
        names = headings(self._per_image_names())
        rows = [
            (
                names[name],
                title,
                show(summary.mean),
                interval(summary),
                show(summary.median),
            )
            for title, summaries in self.per_image.items()
            for name, summary in summaries.items()
        ]
        return Table(("per image", "model", "mean", "interval", "median"), rows)

    def _per_image_names(self) -> list[str]:
        return list(dict.fromkeys(chain.from_iterable(self.per_image.values())))

    def prediction_table(self) -> Table:
        """Return what the pruned model predicts wrongly, level by level."""
        rows = [
            (f"{each.low:g} to {each.high:g}", str(each.num_samples), show(each.error))
            for each in self.predictions
        ]
        return Table(("level of noise", "samples", "error"), rows)

    def _predictions(self) -> str:
        return f"{ABOUT_PREDICTIONS}\n\n{self.prediction_table().to_markdown()}"

    def _facts(self) -> str:
        facts = {**self.recipe, **self.facts()}
        return bullets([*(f"{name}: {value}" for name, value in facts.items()), *self.notes()])

    def _images(self) -> str:
        metrics, per_image = self.metric_table(), self.per_image_table()
        if not metrics.rows:
            return NOT_MEASURED
        tables = [metrics.to_markdown()]
        if per_image.rows:
            tables += [ABOUT_INTERVALS, per_image.to_markdown()]
        return "\n\n".join(tables)


def bullets(lines: Iterable[str]) -> str:
    """Return a list in Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def interval(summary: Summary) -> str:
    """Return from where to where, or nothing where some values are infinite."""
    if not math.isfinite(summary.low):
        return ""
    return f"{summary.low:.4g} to {summary.high:.4g}"


def spread(values: Sequence[float] | None) -> str:
    """Return mean and standard deviation (n - 1) over the seeds; one seed has no deviation."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.4g}"
    deviation = statistics.stdev(values) if math.isfinite(mean) else math.nan
    return f"{mean:.4g} ± {deviation:.1g}"


def layer_entry(layer: LayerPlan) -> dict[str, Any]:
    """Return one layer as plain values."""
    return {
        "name": layer.target.name,
        "role": layer.target.role.value,
        "block": layer.target.block,
        "shape": list(layer.shape),
        "granularity": layer.granularity,
        "num_pruned": layer.num_pruned,
        "sparsity": layer.sparsity,
        "row_variation": layer.row_variation,
        "error_masked": layer.errors and layer.errors.masked,
        "error_repaired": layer.errors and layer.errors.repaired,
    }


def layer_table(layers: Sequence[LayerPlan]) -> Table:
    """Return what every layer gave."""
    rows = [
        (
            layer.target.name,
            layer.target.role.value,
            f"{layer.shape[0]} x {layer.shape[1]}",
            layer.granularity,
            f"{layer.sparsity:.2%}",
            show(layer.row_variation),
            show(layer.errors and layer.errors.masked),
            show(layer.errors and layer.errors.repaired),
        )
        for layer in layers
    ]
    head = ("layer", "role", "shape", "granularity", "sparsity", "row variation")
    return Table((*head, "output error of the mask", "after repair"), rows)


def show(value: float | str | None) -> str:
    """Return a value for a person."""
    return f"{value:.4g}" if isinstance(value, float) else str(value or "")
