"""What images from files are worth, whoever drew them: `ditprune score`."""

import json
from collections.abc import Iterator, Sequence
from itertools import repeat, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ditprune.atomic import demand_writable, writing
from ditprune.bootstrap import Summary, summarize
from ditprune.identity import Tally
from ditprune.image_files import count_images, demand_any_order, image_paths, is_npz, read_images
from ditprune.joined import joined, mapped
from ditprune.measurement import (
    Real,
    demand_statistics_do,
    extract_all,
    measure,
    warn_of_few_images,
)
from ditprune.metrics import (
    ADMInceptionScore,
    FeatureExtractor,
    FeatureMetric,
    Features,
    FrechetDistance,
    InceptionScore,
    InceptionV3,
    KernelInceptionDistance,
    PrecisionRecall,
)
from ditprune.metrics.paired import ALWAYS, PairedMetric
from ditprune.metrics.prompted import PromptMetric
from ditprune.reference import Reference
from ditprune.results import as_json, summaries_entry
from ditprune.statistics_file import holds_images, holds_statistics, load_statistics


def score(
    images: Path,
    reference: Path,
    dense: Path | None = None,
    extractor: FeatureExtractor | None = None,
    metrics: Sequence[FeatureMetric] | None = None,
    results: Path | None = None,
    prompts: Path | None = None,
    prompt_metrics: Sequence[PromptMetric] = (),
    paired_metrics: Sequence[PairedMetric] = (),
) -> dict[str, Any]:
    """Measure images from files.

    Args:
        images: a folder of images, or an npz as ADM's evaluator writes it.
        reference: real images, likewise; or an npz with their statistics, as `ditprune statistics`
            and ADM write it.
        dense: the dense model's images, likewise, in the same order and from the same noise;
            adds the errors between each and its partner.
        extractor: the network whose features are compared; None is InceptionV3.
        metrics: on those features; None is FID, KID, inception score, precision and recall.
        results: JSON file to write to.
        prompts: a text file with the prompt of each image on a line, in the order of the images.
        prompt_metrics: score each image with its own prompt.
        paired_metrics: compare each image with the dense model's, beside MSE, PSNR and SSIM.

    Raises:
        ValueError: if images cannot be read, or have no partner or prompt.
    """
    extractor = extractor or InceptionV3()
    if metrics is None:
        metrics = default_metrics(reference)
    if any(isinstance(metric, ADMInceptionScore) for metric in metrics):
        demand_any_order(images)
    if not holds_images(reference):
        demand_statistics_do(reference, metrics)
    else:
        count_images(reference)  # what cannot be read is told now
    statistics = reference if holds_statistics(reference) else None
    known = load_statistics(statistics, extractor) if statistics else None
    if dense is not None:
        demand_same_names(images, dense)
    if results is not None:
        demand_writable(results.parent)
        if results.is_dir():
            raise ValueError(f"results are written to a file, and {results} is a folder")
    words = read_words(prompts, images, prompt_metrics)
    warn_of_few_images(metrics, count_images(images))
    if paired_metrics and dense is None:
        raise ValueError("paired_metrics compare with the dense model's images: give them as dense")
    pair_metrics = (*ALWAYS, *paired_metrics)
    seen, real_seen = Tally(), Tally()
    drawn, values = look_at(images, dense, extractor, words, prompt_metrics, pair_metrics, seen)
    real = drawn.none()
    if holds_images(reference):
        batches = real_seen.watch(track(read_images(reference), "reference"))
        real = extract_all(batches, extractor)
    measured = measure([drawn], Real(real, known), metrics)
    per_image: dict[str, Summary] = {name: summarize(x) for name, x in values.items()}
    means = {name: summary.mean for name, summary in per_image.items()}
    found = {
        "images": str(images),
        "images_sha256": seen.source.sha256,
        "reference": str(reference),
        "compared_with": Reference(real_seen.source, [], statistics).name,
        "num_images": len(drawn.pool),
        "num_reference": real_seen.num_images or size_of(reference),
        "features": extractor.name,
        "protocols": [metric.protocol for metric in metrics],
        "metrics": {
            **{name: as_json(value) for name, [value] in measured.items()},
            **{name: as_json(value) for name, value in means.items()},
        },
        "per_image": summaries_entry(per_image),
    }
    Console().print_json(data=found)
    if results is not None:
        with writing(results) as draft:
            draft.write_text(json.dumps(found, indent=2) + "\n")
    return found


def default_metrics(reference: Path) -> list[FeatureMetric]:
    """Return what can be measured with a reference of this kind."""
    metrics: list[FeatureMetric] = [FrechetDistance(), InceptionScore()]
    if holds_images(reference):
        metrics += [KernelInceptionDistance(), PrecisionRecall()]
    return metrics


def size_of(statistics: Path) -> int:
    """Return the number of images that statistics are of, or 0 where they do not tell it."""
    with np.load(statistics, allow_pickle=False) as file:
        return int(file["n"]) if "n" in file else 0


def demand_same_names(images: Path, dense: Path) -> None:
    """Raise a ValueError if two folders name their images otherwise: they are paired in order."""
    if is_npz(images) or is_npz(dense):
        return
    names, others = ([p.relative_to(x) for p in image_paths(x)] for x in (images, dense))
    for one, other in zip(names, others, strict=False):  # their numbers are compared elsewhere
        if one.with_suffix("") != other.with_suffix(""):
            raise ValueError(
                f"images are paired in the order of their names, and {one} of {images} would meet "
                f"{other} of {dense}: give partners one name"
            )


def read_words(
    prompts: Path | None, images: Path, prompt_metrics: Sequence[PromptMetric]
) -> list[str]:
    """Return the prompts of all images.

    Raises:
        ValueError: if there are not as many as images, or one of file and metrics is missing.
    """
    if (prompts is None) != (not prompt_metrics):
        raise ValueError("prompts and prompt_metrics belong together: give both or none")
    if prompts is None:
        return []
    try:
        words = prompts.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the prompts in {prompts}: {error}") from error
    if len(words) != count_images(images):
        raise ValueError(
            f"there are {len(words)} prompts in {prompts} for {count_images(images)} images in "
            f"{images}: give one on each line, in the order of the images' names"
        )
    return words


def look_at(
    images: Path,
    dense: Path | None,
    extractor: FeatureExtractor,
    words: Sequence[str],
    prompt_metrics: Sequence[PromptMetric],
    paired_metrics: Sequence[PairedMetric],
    tally: Tally,
) -> tuple[Features, dict[str, Float64[np.ndarray, " n"]]]:
    """Return the features of all images, and what each has for itself; batch by batch."""
    values: list[dict[str, Tensor]] = []

    def features() -> Iterator[dict[str, Tensor]]:
        start = 0
        for batch, partners in track(pairs(images, dense), "images"):
            tally.add(batch)
            found = {}
            if partners is not None:
                found = {metric.name: metric.compare(batch, partners) for metric in paired_metrics}
            for metric in prompt_metrics:
                found[metric.name] = metric.score(batch, words[start : start + len(batch)])
            values.append(found)
            start += len(batch)
            yield extractor.extract(batch).tensors()

    seen = Features(**mapped(features()))
    return seen, {name: x.numpy() for name, x in joined(values).items()}


def pairs(
    images: Path, dense: Path | None
) -> Iterator[tuple[UInt8[Tensor, "n c h w"], UInt8[Tensor, "n c h w"] | None]]:
    """Yield batches of images with their partners, if there are some.

    Raises:
        ValueError: if some have no partner of their size.
    """
    if dense is None:
        yield from zip(read_images(images), repeat(None))
        return
    for batch, partners in zip_longest(read_images(images), read_images(dense)):
        if batch is None or partners is None or batch.shape != partners.shape:
            raise ValueError(
                f"{images} and {dense} hold different numbers of images, or of other sizes, so "
                "that some have no partner"
            )
        yield batch, partners
