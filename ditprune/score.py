"""What images from files are worth, whoever drew them: `ditprune score`."""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from torch import Tensor

from ditprune.atomic import writing
from ditprune.evaluation import extract_all, measure, warn_of_few_images
from ditprune.image_files import read_images
from ditprune.metrics import (
    FeatureExtractor,
    FeatureMetric,
    FrechetDistance,
    InceptionScore,
    InceptionV3,
    KernelInceptionDistance,
    PrecisionRecall,
    paired_errors,
)


def score(
    images: Path,
    reference: Path,
    dense: Path | None = None,
    extractor: FeatureExtractor | None = None,
    metrics: Sequence[FeatureMetric] | None = None,
    results: Path | None = None,
) -> dict[str, Any]:
    """Measure images from files.

    Args:
        images: a folder of images, or an npz as ADM's evaluator writes it.
        reference: real images, likewise.
        dense: the dense model's images, likewise, in the same order and from the same noise;
            adds the errors between each and its partner.
        extractor: the network whose features are compared; None is InceptionV3.
        metrics: on those features; None is FID, KID, inception score, precision and recall.
        results: JSON file to write to.

    Raises:
        ValueError: if images cannot be read, or have no partner.
    """
    extractor = extractor or InceptionV3()
    if metrics is None:
        metrics = [
            FrechetDistance(),
            KernelInceptionDistance(),
            InceptionScore(),
            PrecisionRecall(),
        ]
    drawn = extract_all(track(read_images(images), "images"), extractor)
    real = extract_all(track(read_images(reference), "reference"), extractor)
    warn_of_few_images(metrics, len(drawn.pool))
    measured = {name: values[0] for name, values in measure({0: drawn}, real, metrics).items()}
    measured.update(mean_errors(images, dense) if dense else {})
    found = {
        "images": str(images),
        "reference": str(reference),
        "num_images": len(drawn.pool),
        "num_reference": len(real.pool),
        "features": extractor.name,
        # JSON knows no infinity, which is the PSNR of equal images.
        "metrics": {n: v if math.isfinite(v) else str(v) for n, v in measured.items()},
    }
    if results is not None:
        with writing(results) as draft:
            draft.write_text(json.dumps(found, indent=2) + "\n")
    Console().print_json(data=found)
    return found


def mean_errors(images: Path, dense: Path) -> dict[str, float]:
    """Return the mean of each error between images and their partners.

    Raises:
        ValueError: if some have no partner of their size.
    """
    errors: dict[str, list[float]] = {}
    for image, partner in zip_longest(one_by_one(images), one_by_one(dense)):
        if image is None or partner is None:
            raise ValueError(
                f"{images} and {dense} hold different numbers of images, so that some have no "
                "partner"
            )
        for name, values in paired_errors(image, partner).items():
            errors.setdefault(name, []).append(values.item())
    return {name: statistics.fmean(values) for name, values in errors.items()}


def one_by_one(path: Path) -> Iterator[Tensor]:
    """Yield images as batches of one."""
    batches: Iterable[Tensor] = read_images(path)
    return chain.from_iterable(batch.split(1) for batch in batches)
