"""Images drawn from fixed seeds, kept on disk chunk by chunk, and what they are worth."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditprune.atomic import writing
from ditprune.distributed import all_cores, barrier, on_first_rank, rank, share_of_rank
from ditprune.metrics import (
    FeatureExtractor,
    FeatureMetric,
    Features,
    FrechetDistance,
    SpatialFrechetDistance,
    paired_errors,
)
from ditprune.sampling import sample_generator

log = logging.getLogger(__name__)


@runtime_checkable
class Sampler(Protocol):
    """Whatever draws images: a LightningModule with this method, for instance."""

    def sample(
        self, condition: Int[Tensor, " b"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "b c h w"]:
        """Draw one image in [-1, 1] for each condition, from a generator of its own."""
        ...


class Chunk(NamedTuple):
    """Samples that are drawn in one batch, whatever the number of processes."""

    seed: int
    ids: range

    @property
    def file_name(self) -> str:
        """The name of the file that holds them."""
        return f"seed{self.seed}-{self.ids.start:06d}.safetensors"


@dataclass(frozen=True)
class SamplingPlan:
    """Which images to draw: every condition once for each seed."""

    conditions: Int[Tensor, " n"]
    seeds: tuple[int, ...] = (0,)
    chunk_size: int = 100

    def __post_init__(self) -> None:
        """Refuse a plan without images."""
        if not len(self.conditions) or not self.seeds or self.chunk_size < 1:
            raise ValueError(
                "there is nothing to draw: conditions, seeds and chunk_size must not be empty; "
                f"got {len(self.conditions)} conditions, {self.seeds}, {self.chunk_size}"
            )

    def chunks(self) -> list[Chunk]:
        """Return the chunks of all seeds, in order."""
        ids = range(len(self.conditions))
        starts = ids[:: self.chunk_size]
        return [
            Chunk(seed, ids[start : start + self.chunk_size])
            for seed in self.seeds
            for start in starts
        ]


class Samples(NamedTuple):
    """Images and their features, in the order of the sample ids."""

    images: UInt8[Tensor, "n c h w"]
    features: Features


def draw_samples(
    sampler: Sampler, plan: SamplingPlan, extractor: FeatureExtractor, folder: Path, title: str
) -> dict[int, Samples]:
    """Draw the images of a plan, or find them on disk; return those of each seed.

    They are kept in a folder named after the first chunk itself, drawn anew each time: whatever
    changes the images, weights, schedule or code, changes the name. A chunk that is missing or
    damaged is drawn again. With several processes, each draws its share; all return the same.
    """
    start = plan.chunks()[0]
    known = {start: draw_chunk(sampler, plan, extractor, start)} if rank() == 0 else {}
    home = folder / on_first_rank(lambda: name_of(known[start], plan, extractor))
    for chunk in track(list(share_of_rank(plan.chunks())), f"sampling {title}", disable=rank() > 0):
        if read_chunk(home / chunk.file_name) is None:
            drawn = known.get(chunk) or draw_chunk(sampler, plan, extractor, chunk)
            with writing(home / chunk.file_name) as draft:
                save_file(drawn, draft)
    barrier()
    return {seed: load_samples(home, plan, seed) for seed in plan.seeds}


def draw_chunk(
    sampler: Sampler, plan: SamplingPlan, extractor: FeatureExtractor, chunk: Chunk
) -> dict[str, Tensor]:
    """Draw the images of one chunk, in a batch of full size, and extract their features."""
    padding = [chunk.ids[-1]] * (plan.chunk_size - len(chunk.ids))
    ids = [*chunk.ids, *padding]
    generators = [sample_generator(chunk.seed, sample_id) for sample_id in ids]
    images = to_uint8(sampler.sample(plan.conditions[ids], generators)).cpu()
    drawn = {"images": images, **extractor.extract(images).tensors()}
    plain = torch.contiguous_format  # images of diffusers have their channels last in memory
    return {n: x[: len(chunk.ids)].clone(memory_format=plain) for n, x in drawn.items()}


def name_of(first: Mapping[str, Tensor], plan: SamplingPlan, extractor: FeatureExtractor) -> str:
    """Return a digest of the first chunk and of what else decides the others."""
    digest = hashlib.sha256(first["images"].numpy().tobytes())
    digest.update(plan.conditions.numpy().tobytes())
    digest.update(f"{plan.seeds[0]}/{plan.chunk_size}/{extractor.name}/{sorted(first)}".encode())
    return digest.hexdigest()[:16]


def read_chunk(path: Path) -> dict[str, Tensor] | None:
    """Return a chunk's tensors, or None if its file is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def load_samples(home: Path, plan: SamplingPlan, seed: int) -> Samples:
    """Return all samples of one seed from their files."""
    chunks = [load_file(home / c.file_name) for c in plan.chunks() if c.seed == seed]
    drawn = joined(chunks)
    return Samples(drawn.pop("images"), Features(**drawn))


def to_uint8(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Return 8-bit images of those in [-1, 1], rounded to nearest."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


Measured = dict[str, list[float]]
"""A value of each metric for each seed."""


MANY_IMAGES = 10_000
"""From here on, published Frechet distances."""
BIASED = (FrechetDistance, SpatialFrechetDistance)


def warn_of_few_images(metrics: Iterable[FeatureMetric], num_images: int) -> None:
    """Warn if a distance is measured on so few images that its bias counts."""
    if num_images < MANY_IMAGES and any(isinstance(metric, BIASED) for metric in metrics):
        log.warning(
            "FID is measured on %d images: its bias goes as 1/N, so that numbers of different N "
            "do not compare; those published take %d or more",
            num_images,
            MANY_IMAGES,
        )


def measure(
    samples: Mapping[int, Features], reference: Features, metrics: Iterable[FeatureMetric]
) -> Measured:
    """Compare the features of each seed with the reference images', in this process alone."""
    measured: Measured = {}
    for original in metrics:
        metric = original.clone()
        metric.distributed_available_fn = lambda: False  # ranks hold the same samples, no shares
        for drawn in samples.values():
            metric.reset()
            metric.update(drawn, reference)
            with all_cores():
                values = metric.compute()
            for name, value in values.items():
                measured.setdefault(name, []).append(float(value))
    return measured


def measure_pairs(samples: Mapping[int, Samples], dense: Mapping[int, Samples]) -> Measured:
    """Return the mean error of each seed's images to the dense model's from the same noise."""
    measured: Measured = {}
    for seed, drawn in samples.items():
        for name, errors in paired_errors(drawn.images, dense[seed].images).items():
            measured.setdefault(name, []).append(errors.mean().item())
    return measured


def extract_all(
    batches: Iterable[UInt8[Tensor, "b c h w"]], extractor: FeatureExtractor
) -> Features:
    """Return the features of all images of a loader."""
    return Features(**joined([extractor.extract(images).tensors() for images in batches]))


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all parts, one part after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
