"""Rows that come in parts, one part after the other: in memory, or in files that it maps."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all parts, one part after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def mapped(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all parts, one part after the other, as files of their own.

    They may be larger than the memory, which holds of them what is in use. The files lie in the
    folder for temporary ones, unseen, and vanish with the tensors.

    Raises:
        ValueError: if there is no room for them, or parts differ in more than their rows.
    """
    rolls: dict[str, Roll] = {}
    with ExitStack() as files:
        for part in parts:
            if not rolls:
                for name, rows in part.items():
                    file = files.enter_context(tempfile.TemporaryFile(buffering=0))
                    rolls[name] = Roll(file, rows.shape[1:], rows.dtype)
            if part.keys() != rolls.keys():
                raise ValueError(f"{sorted(part)} come after {sorted(rolls)}")
            for name, rows in part.items():
                rolls[name].append(rows)
        return {name: roll.tensor() for name, roll in rolls.items()}


@dataclass
class Roll:
    """A file that rows are added to."""

    file: IO[bytes]
    shape: tuple[int, ...]
    """Of a row."""
    dtype: torch.dtype
    num_rows: int = 0

    def append(self, rows: Shaped[Tensor, "n ..."]) -> None:
        """Add rows.

        Raises:
            ValueError: if there is no room for them, or they are of another shape or dtype.
        """
        if (rows.shape[1:], rows.dtype) != (self.shape, self.dtype):
            raise ValueError(
                f"rows of shape {tuple(rows.shape[1:])} in {rows.dtype} come after rows of shape "
                f"{tuple(self.shape)} in {self.dtype}"
            )
        rest = memoryview(rows.cpu().contiguous().numpy().reshape(-1).view(np.uint8).data)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            raise ValueError(
                f"cannot keep rows of all images in {tempfile.gettempdir()}: {error}; set the "
                "environment variable TMPDIR to a folder with more room"
            ) from error
        self.num_rows += len(rows)

    def tensor(self) -> Shaped[Tensor, "n ..."]:
        """Return all rows; the file may be closed then, for its map keeps it."""
        empty = torch.empty(0, dtype=self.dtype).numpy()
        shape = (self.num_rows, *self.shape)
        if 0 in shape:  # no empty file can be mapped
            return torch.from_numpy(empty.reshape(shape))
        return torch.from_numpy(np.memmap(self.file, empty.dtype, "r+", shape=shape))
