"""Which images to draw, in which batches: whatever the number of processes."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64
from torch import Tensor


class Chunk(NamedTuple):
    """Samples that are drawn in one batch, whatever the number of processes."""

    seed: int
    ids: range

    def padded(self, size: int) -> list[int]:
        """Return so many ids, the last repeated: the size of a batch decides which kernels run."""
        return [*self.ids, *[self.ids[-1]] * (size - len(self.ids))]

    def file(self, home: Path) -> Path:
        """Return the file of what was measured of them."""
        return home / f"seed{self.seed}" / f"{self.ids.start:06d}.safetensors"

    def images(self, home: Path) -> list[Path]:
        """Return the images' files; their folder holds nothing else."""
        return [home / f"seed{self.seed}" / "images" / f"{i:06d}.png" for i in self.ids]


@dataclass(frozen=True)
class SamplingPlan:
    """Which images to draw: every condition once for each seed."""

    conditions: Int[Tensor, " n"]
    seeds: tuple[int, ...] = (0,)
    chunk_size: int = 100
    prompts: Sequence[str] = ()
    """Of the conditions, where they stand for some."""

    def __post_init__(self) -> None:
        """Refuse a plan without images, or one that says twice or not at all what to draw."""
        if not len(self.conditions) or not self.seeds or self.chunk_size < 1:
            raise ValueError(
                "there is nothing to draw: conditions, seeds and chunk_size must not be empty; "
                f"got {len(self.conditions)} conditions, {self.seeds}, {self.chunk_size}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"a seed given twice draws the same images twice: {self.seeds}")
        if self.prompts and len(self.prompts) != len(self.conditions):
            raise ValueError(
                f"there are {len(self.prompts)} prompts for {len(self.conditions)} samples; the "
                "datamodule's evaluation_prompts and evaluation_conditions must be of the same"
            )

    def chunks(self) -> list[Chunk]:
        """Return the chunks of all seeds, in order."""
        return [chunk for seed in self.seeds for chunk in self.chunks_of(seed)]

    def chunks_of(self, seed: int) -> list[Chunk]:
        """Return the chunks of one seed, in order."""
        ids = range(len(self.conditions))
        return [
            Chunk(seed, ids[start : start + self.chunk_size]) for start in ids[:: self.chunk_size]
        ]

    def digest(self) -> str:
        """Return sixteen digits of a digest of what is asked for."""
        digest = hashlib.sha256(self.conditions.numpy().tobytes())
        digest.update(json.dumps(list(self.prompts)).encode())
        return digest.hexdigest()[:16]

    def groups(self) -> Int64[np.ndarray, " n"]:
        """Return a number for each sample: the same for those of one prompt."""
        if not self.prompts:
            return np.arange(len(self.conditions))
        numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(self.prompts))}
        return np.array([numbers[prompt] for prompt in self.prompts])
