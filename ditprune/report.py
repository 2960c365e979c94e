"""What was removed where, and what it cost: the only thing that formats results."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ditprune.atomic import writing
from ditprune.evaluation import Measured
from ditprune.plan import LayerPlan, Plan

LOWER_IS_BETTER = "↓"
HIGHER_IS_BETTER = "↑"
DIRECTION = dict.fromkeys(
    ("fid", "fid_infinity", "sfid", "kid", "kid_std", "cmmd", "mse"), LOWER_IS_BETTER
)
"""Which way is better; what is not named is better higher."""


@dataclass(frozen=True)
class PruneReport:
    """The result of a run: the recipe, what every layer gave, what the images are worth."""

    recipe: Mapping[str, str]
    plan: Plan
    mask_hash: str
    features: str = ""
    """The network whose features are compared, with a hash of its weights."""
    num_samples: int = 0
    seeds: Sequence[int] = ()
    dense: Measured = field(default_factory=dict)
    """Values of each metric, one for each seed."""
    pruned: Measured = field(default_factory=dict)
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
            "num_samples": self.num_samples,
            "seeds": list(self.seeds),
            "metrics": {"dense": finite(self.dense), "pruned": finite(self.pruned)},
            "layers": [layer_entry(layer) for layer in self.plan.layers],
            "cost": dict(self.cost),
        }

    def pruning_config(self) -> dict[str, Any]:
        """Return what identifies the pruning: the report without measurements."""
        left_out = ("metrics", "cost", "features", "num_samples", "seeds")
        return {name: value for name, value in self.to_dict().items() if name not in left_out}

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
        return f"{self._facts()}\n\n{self._metrics()}\n"

    def to_markdown(self) -> str:
        """Return the report as a page to read."""
        cost = "\n".join(f"- {name}: {show(value)}" for name, value in self.cost.items())
        sections = {
            "# Pruning report": self._facts(),
            "## Images": self._metrics(),
            "## Cost": cost,
            "## Layers": layer_markdown(self.plan.layers),
        }
        return "\n".join(f"{title}\n\n{text}\n" for title, text in sections.items())

    def save(self, folder: Path) -> None:
        """Write `report.json` and `report.md`."""
        with writing(folder / "report.json") as draft:
            draft.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        with writing(folder / "report.md") as draft:
            draft.write_text(self.to_markdown())

    def _facts(self) -> str:
        facts = {
            **self.recipe,
            "target set": self.plan.target_set(),
            "sparsity": self.plan.totals(),
            "images": f"{self.num_samples} for each of {len(self.seeds)} seeds {list(self.seeds)}; "
            "metrics are mean ± standard deviation over the seeds",
            "features": self.features or "none",
            "speed": "that of the dense model: zeros are stored and multiplied like other weights",
            "mask hash": self.mask_hash,
        }
        return "\n".join(f"- {name}: {value}" for name, value in facts.items())

    def _metrics(self) -> str:
        names = [*self.dense, *(name for name in self.pruned if name not in self.dense)]
        if not names:
            return "Not measured: add an EvaluationCallback and run `trainer.validate`."
        rows = [
            f"| {name} {DIRECTION.get(name, HIGHER_IS_BETTER)} | {spread(self.dense.get(name))} | "
            f"{spread(self.pruned.get(name))} |"
            for name in names
        ]
        return "\n".join(["| metric | dense | pruned |", "|---|---|---|", *rows])


def spread(values: Sequence[float] | None) -> str:
    """Return mean and standard deviation (n - 1) over the seeds; one seed has no deviation."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.4g}"
    deviation = statistics.stdev(values) if math.isfinite(mean) else math.nan
    return f"{mean:.4g} ± {deviation:.1g}"


def finite(measured: Measured) -> dict[str, list[float | str]]:
    """Return the values as JSON knows them: it has no infinity."""
    return {
        name: [value if math.isfinite(value) else str(value) for value in values]
        for name, values in measured.items()
    }


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


def layer_markdown(layers: Sequence[LayerPlan]) -> str:
    """Return the layers as a Markdown table."""
    rows = [
        f"| {layer.target.name} | {layer.target.role.value} | {layer.shape[0]} x {layer.shape[1]} "
        f"| {layer.granularity} | {layer.sparsity:.2%} | {show(layer.row_variation)} "
        f"| {show(layer.errors and layer.errors.masked)} "
        f"| {show(layer.errors and layer.errors.repaired)} |"
        for layer in layers
    ]
    head = (
        "| layer | role | shape | granularity | sparsity | row variation "
        "| output error of the mask | after repair |"
    )
    return "\n".join([head, "|---|---|---|---|---|---|---|---|", *rows])


def show(value: float | str | None) -> str:
    """Return a value for a person."""
    return f"{value:.4g}" if isinstance(value, float) else str(value or "")
