"""What is measured of every chunk of images, by the process that draws it."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from ditprune.chunks import read_pictures
from ditprune.metrics import FeatureExtractor
from ditprune.metrics.paired import PairedMetric
from ditprune.metrics.prompted import PromptMetric
from ditprune.samples import Key, Samples
from ditprune.sampling_plan import Chunk, SamplingPlan

Meter = Callable[[Chunk, UInt8[Tensor, "b c h w"]], dict[str, Tensor]]
"""Measures a batch of images of a chunk: columns with a row for each."""


def meters_of(
    plan: SamplingPlan,
    extractor: FeatureExtractor | None,
    prompt_metrics: Sequence[PromptMetric],
    paired_metrics: Sequence[PairedMetric],
    dense: Mapping[int, Samples] | None,
) -> dict[Key, Meter]:
    """Return what is to be measured of every chunk."""
    meters: dict[Key, Meter] = {}
    if extractor is not None:
        meters[Key("features", extractor.name)] = features_meter(plan, extractor)
    for metric in prompt_metrics:
        meters[Key("score", metric.name)] = score_meter(plan, metric)
    if dense is not None:
        beside = next(iter(dense.values())).manifest.digest
        for paired in paired_metrics:
            meters[Key("error", paired.name, beside)] = error_meter(plan, paired, dense)
    return meters


def features_meter(plan: SamplingPlan, extractor: FeatureExtractor) -> Meter:
    """Extract features from batches of full size, as they are drawn."""

    def extract(chunk: Chunk, images: UInt8[Tensor, "b c h w"]) -> dict[str, Tensor]:
        features = extractor.extract(padded(images, plan.chunk_size)).tensors()
        return {name: rows(x, len(images)) for name, x in features.items()}

    return extract


def score_meter(plan: SamplingPlan, metric: PromptMetric) -> Meter:
    """Score images with their prompts, in batches of full size."""

    def score(chunk: Chunk, images: UInt8[Tensor, "b c h w"]) -> dict[str, Tensor]:
        prompts = [plan.prompts[i] for i in chunk.padded(plan.chunk_size)]
        scores = metric.score(padded(images, plan.chunk_size), prompts)
        return {"value": rows(scores, len(images))}

    return score


def error_meter(plan: SamplingPlan, metric: PairedMetric, dense: Mapping[int, Samples]) -> Meter:
    """Compare images with the dense model's from the same noise."""

    def compare(chunk: Chunk, images: UInt8[Tensor, "b c h w"]) -> dict[str, Tensor]:
        partners = read_pictures(chunk, dense[chunk.seed].home)
        both = (padded(side, plan.chunk_size) for side in (images, partners))
        return {"value": rows(metric.compare(*both), len(images))}

    return compare


def padded(images: UInt8[Tensor, "b c h w"], size: int) -> UInt8[Tensor, "n c h w"]:
    """Repeat the last image until there are so many."""
    return torch.cat([images, images[-1:].expand(size - len(images), -1, -1, -1)])


def rows(x: Shaped[Tensor, "n ..."], count: int) -> Shaped[Tensor, "m ..."]:
    """Return the first rows in memory of their own, as files take them."""
    return x[:count].clone(memory_format=torch.contiguous_format)
