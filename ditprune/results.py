"""What an evaluation found, in full: `results.json`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from ditprune.atomic import writing
from ditprune.bootstrap import Summary, summarize
from ditprune.joined import joined
from ditprune.measurement import Measured
from ditprune.samples import Samples

Summaries = dict[str, Summary]
"""Of numbers that are one of each image, by name."""

CHANGE = "pruned - dense"


@dataclass(frozen=True)
class ModelResults:
    """What one model's images are worth."""

    images: Mapping[int, str]
    """A digest of each seed's images."""
    measured: Measured
    """Values of each metric, one for each seed."""
    per_image: Summaries
    """Over the images of all seeds."""


@dataclass(frozen=True)
class Results:
    """What the dense and the pruned model's images are worth, and by which protocol."""

    protocol: Mapping[str, Any]
    models: Mapping[str, ModelResults]
    """`dense`, `pruned` or both."""
    changes: Summaries
    """Pruned minus dense, image by image."""

    def save(self, path: Path) -> None:
        """Write all numbers in full; the same ones are the same file, to the bit."""
        with writing(path) as draft:
            draft.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        models = {
            title: {
                "images_sha256": {str(seed): digest for seed, digest in model.images.items()},
                "metrics": measured_entry(model.measured),
                "per_image": summaries_entry(model.per_image),
            }
            for title, model in self.models.items()
        }
        return {
            "protocol": dict(self.protocol),
            "models": models,
            CHANGE: summaries_entry(self.changes),
        }

    def per_image(self) -> dict[str, Summaries]:
        """Return the summaries of each model, and of the changes."""
        found = {title: model.per_image for title, model in self.models.items()}
        return {**found, CHANGE: self.changes}


def compare(
    protocol: Mapping[str, Any],
    found: Mapping[str, tuple[Mapping[int, Samples], Measured]],
    groups: Int64[np.ndarray, " n"],
) -> Results:
    """Return the results of the models whose samples and metrics are given by name.

    Args:
        protocol: what makes the numbers comparable.
        found: of `dense`, `pruned` or both.
        groups: which samples are of one prompt.
    """
    models = {
        title: ModelResults(
            images={seed: drawn.digest() for seed, drawn in samples.items()},
            measured=measured,
            per_image=summarize_values(samples, groups),
        )
        for title, (samples, measured) in found.items()
    }
    changes: Summaries = {}
    if {"pruned", "dense"} <= found.keys():
        changes = summarize_changes(found["pruned"][0], found["dense"][0], groups)
    return Results(protocol, models, changes)


def summarize_values(samples: Mapping[int, Samples], groups: Int64[np.ndarray, " n"]) -> Summaries:
    """Summarize the numbers that an image has for itself, over all seeds; groups tell prompts."""
    return {
        name: summarize(values, np.tile(groups, len(samples)))
        for name, values in values_of(samples).items()
    }


def summarize_changes(
    pruned: Mapping[int, Samples],
    dense: Mapping[int, Samples],
    groups: Int64[np.ndarray, " n"],
) -> Summaries:
    """Summarize pruned minus dense, image by image, of what both models' images have."""
    after, before = values_of(pruned), values_of(dense)
    return {
        name: summarize(after[name] - before[name], np.tile(groups, len(pruned)))
        for name in after
        if name in before
    }


def values_of(samples: Mapping[int, Samples]) -> dict[str, Float64[np.ndarray, " n"]]:
    """Return every number that an image has for itself, seed after seed."""
    return {
        name: values.double().numpy()
        for name, values in joined([drawn.values() for drawn in samples.values()]).items()
    }


def summaries_entry(summaries: Mapping[str, Summary]) -> dict[str, dict[str, float | str]]:
    """Return summaries as plain values."""
    return {
        name: {part: as_json(value) for part, value in summary._asdict().items()}
        for name, summary in summaries.items()
    }


def measured_entry(measured: Measured) -> dict[str, list[float | str]]:
    """Return the values of every metric as plain ones."""
    return {name: [as_json(value) for value in values] for name, values in measured.items()}


def as_json(value: float) -> float | str:
    """Return a number as JSON knows it: it has no infinity, which is the PSNR of equal images."""
    return value if math.isfinite(value) else str(value)
