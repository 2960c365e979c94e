"""Images drawn from fixed seeds, kept on disk chunk by chunk, and what is measured of each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ditprune.chunks import find_chunk, write_chunk, write_columns
from ditprune.distributed import barrier, on_first_rank, rank
from ditprune.manifest import demand_pairs, describe
from ditprune.meters import Meter, meters_of
from ditprune.metrics import FeatureExtractor
from ditprune.metrics.paired import ALWAYS, PairedMetric
from ditprune.metrics.prompted import PromptMetric
from ditprune.samples import Key, Samples
from ditprune.sampling import sample_generator
from ditprune.sampling_plan import Chunk, SamplingPlan
from ditprune.sampling_progress import chunks_of_rank


@runtime_checkable
class Sampler(Protocol):
    """Whatever draws images: a LightningModule with this method, for instance."""

    def sample(
        self, condition: Int[Tensor, " b"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "b c h w"]:
        """Draw one image in [-1, 1] for each condition, from a generator of its own."""
        ...


def draw_samples(
    sampler: Sampler,
    plan: SamplingPlan,
    extractor: FeatureExtractor | None,
    folder: Path,
    title: str,
    prompt_metrics: Sequence[PromptMetric] = (),
    paired_metrics: Sequence[PairedMetric] = ALWAYS,
    dense: Mapping[int, Samples] | None = None,
) -> dict[int, Samples]:
    """Draw the images of a plan, or find them on disk, and measure each; return those of each seed.

    They are kept in a folder named after what decides them, see `Manifest`. A chunk that is
    missing or damaged is drawn again; one that lacks a measurement is measured. With several
    processes, each takes its share of the chunks, and the images do not depend on how many.

    Args:
        sampler: draws them.
        plan: which ones.
        extractor: the network whose features are wanted, if any are.
        folder: where they are kept; all processes must see it.
        title: of the model, to show.
        prompt_metrics: score each image with its own prompt.
        paired_metrics: compare each image with the dense model's.
        dense: those images, of the same plan.

    Raises:
        ValueError: if the folder holds what does not belong there, or `dense` is of another plan.
    """
    start = plan.chunks()[0]
    known = {start: draw_chunk(sampler, plan, start)} if rank() == 0 else {}
    manifest = on_first_rank(lambda: describe(sampler, plan, known[start]))
    home = folder / manifest.digest
    on_first_rank(lambda: manifest.settle(home, title))
    if dense is not None:
        demand_pairs(manifest, next(iter(dense.values())).manifest)
    meters = meters_of(plan, extractor, prompt_metrics, paired_metrics, dense)

    def draw(chunk: Chunk) -> UInt8[Tensor, "b c h w"]:
        return known[chunk] if chunk in known else draw_chunk(sampler, plan, chunk)

    for chunk in chunks_of_rank(plan.chunks(), home, f"drawing {title}"):
        complete(chunk, home, manifest.digest, draw, meters)
    barrier()
    demand_files(plan.chunks(), home)
    return {
        seed: Samples(home, manifest, plan.chunks_of(seed), tuple(meters)) for seed in plan.seeds
    }


def draw_chunk(sampler: Sampler, plan: SamplingPlan, chunk: Chunk) -> UInt8[Tensor, "b c h w"]:
    """Draw the images of one chunk, in a batch of full size."""
    ids = chunk.padded(plan.chunk_size)
    generators = [sample_generator(chunk.seed, sample_id) for sample_id in ids]
    images = to_uint8(sampler.sample(plan.conditions[ids], generators)).cpu()
    # Images of diffusers have their channels last in memory.
    return images[: len(chunk.ids)].clone(memory_format=torch.contiguous_format)


def complete(
    chunk: Chunk,
    home: Path,
    manifest: str,
    draw: Callable[[Chunk], UInt8[Tensor, "b c h w"]],
    meters: Mapping[Key, Meter],
) -> None:
    """Draw a chunk that is not on disk as it should be, and measure of it what was not."""
    held = find_chunk(chunk, home, manifest)
    images, columns = (draw(chunk), {}) if held is None else held
    missing = {
        key: meter
        for key, meter in meters.items()
        if not any(name.startswith(key.prefix) for name in columns)
    }
    for key, meter in missing.items():
        columns.update({key.prefix + name: x for name, x in meter(chunk, images).items()})
    if held is None:
        write_chunk(chunk, home, images, columns, manifest)
    elif missing:
        write_columns(chunk, home, columns, manifest)


def demand_files(chunks: Sequence[Chunk], home: Path) -> None:
    """Raise a ValueError if this process cannot see what others wrote."""
    num_missing = sum(not chunk.file(home).exists() for chunk in chunks)
    if num_missing:
        raise ValueError(
            f"{num_missing} of {len(chunks)} chunks of samples are not in {home}, though other "
            "processes have written them: put samples_folder on a disk that all of them share"
        )


def to_uint8(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Return 8-bit images of those in [-1, 1], rounded to nearest."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
