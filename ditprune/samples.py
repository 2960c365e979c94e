"""Images that were drawn, and what was measured of each: on disk until they are asked for."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from ditprune.chunks import HASHES, read_columns, read_pictures
from ditprune.joined import joined, mapped
from ditprune.manifest import Manifest
from ditprune.metrics import Features
from ditprune.sampling_plan import Chunk


class Key(NamedTuple):
    """Names what was measured of images, and by what."""

    kind: Literal["features", "score", "error"]
    by: str
    beside: str = ""
    """Which images they were compared with, if any."""

    @property
    def prefix(self) -> str:
        """Return how its columns' names start."""
        return f"{self.kind} | {self.by} | {self.beside} | "


@dataclass(frozen=True)
class Samples:
    """The images of one seed and what was measured of them, read when they are asked for."""

    home: Path
    manifest: Manifest
    chunks: Sequence[Chunk]
    measured: Sequence[Key]
    """What was measured of each image."""

    def batches(self) -> Iterator[UInt8[Tensor, "b c h w"]]:
        """Yield the images, chunk by chunk: all of them need not fit into the memory."""
        return (read_pictures(chunk, self.home) for chunk in self.chunks)

    @property
    def images(self) -> UInt8[Tensor, "n c h w"]:
        """All images at once."""
        return torch.cat(list(self.batches()))

    def first(self, count: int) -> UInt8[Tensor, "k c h w"]:
        """Return the first images, or all where there are fewer."""
        num_chunks = -(-count // len(self.chunks[0].ids))
        few = [read_pictures(chunk, self.home) for chunk in self.chunks[:num_chunks]]
        return torch.cat(few)[:count]

    @property
    def features(self) -> Features:
        """The features of all images, which need not fit into the memory either."""
        [key] = [key for key in self.measured if key.kind == "features"]
        return Features(**mapped(self._parts(key.prefix)))

    def values(self) -> dict[str, Float64[Tensor, " n"]]:
        """Return the numbers that every image has for itself, by name."""
        keys = [key for key in self.measured if key.kind != "features"]
        return {key.by: self.columns(key.prefix)["value"] for key in keys}

    def digest(self) -> str:
        """Return the SHA-256 of the images' own, in order."""
        return hashlib.sha256(self.columns(HASHES)[""].numpy().tobytes()).hexdigest()

    def columns(self, prefix: str) -> dict[str, Tensor]:
        """Return what is stored of all images under a prefix, which the names are freed of."""
        return joined(list(self._parts(prefix)))

    def _parts(self, prefix: str) -> Iterator[dict[str, Tensor]]:
        for chunk in self.chunks:
            columns = read_columns(chunk, self.home, self.manifest.digest, prefix)
            yield {name.removeprefix(prefix): x for name, x in columns.items()}
