"""Weights on disk, in the layout of diffusers: config.json beside one or several safetensors."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

NAME = "diffusion_pytorch_model"
INDEX = f"{NAME}.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Entry(NamedTuple):
    """What a file tells of one of its tensors."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Shards:
    """The tensors of a folder's files, which stay on disk until they are read."""

    folder: Path
    headers: Mapping[str, bytes]
    """Of every file, by its name."""
    entries: Mapping[str, Entry]
    """Of every tensor, by its name."""

    @classmethod
    def of(cls, folder: Path) -> "Shards":
        """Look into the headers of a folder's files.

        Raises:
            ValueError: if a file is missing or cut off, or lacks a tensor of the index.
        """
        expected = files_of(folder)
        headers = {name: header_of(folder / name) for name in expected}
        entries: dict[str, Entry] = {}
        for name, header in headers.items():
            entries |= entries_in(folder / name, header)
        for name, tensors in expected.items():
            if lacking := [each for each in tensors if each not in entries]:
                raise ValueError(f"{folder / name} lacks {', '.join(lacking[:4])}. {AGAIN}")
        return cls(folder, headers, entries)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's configuration."""
        return read_json(self.folder / "config.json")

    def dtype(self) -> torch.dtype:
        """Return the dtype that most numbers have.

        Raises:
            ValueError: if that is none to compute with.
        """
        sizes: Counter[str] = Counter()
        for entry in self.entries.values():
            sizes[entry.dtype] += prod(entry.shape)
        most = max(sizes, key=sizes.__getitem__, default="nothing")
        if most not in DTYPES:
            raise ValueError(
                f"the weights in {self.folder} are {most}; they must be one of {', '.join(DTYPES)}"
            )
        return DTYPES[most]

    def demand_holds(self, state: Mapping[str, Tensor]) -> None:
        """Raise a ValueError that names a tensor which is missing, or has another shape."""
        for name, tensor in state.items():
            if name not in self.entries:
                raise ValueError(f"no file in {self.folder} holds {name}. {AGAIN}")
            file, _, shape = self.entries[name]
            if shape != tuple(tensor.shape):
                raise ValueError(
                    f"{file} holds {name} of shape {list(shape)}, and by {self.folder}/config.json "
                    f"it has {list(tensor.shape)}: they are of different models"
                )

    def read(self, names: Iterable[str], device: torch.device) -> dict[str, Tensor]:
        """Copy tensors from the mapped files into memory."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.entries[name].file, []).append(name)
        tensors: dict[str, Tensor] = {}
        for path, inside in by_file.items():
            tensors |= read_file(path, inside, device)
        return tensors

    def digest(self) -> str:
        """Return a digest of configuration, file names, sizes and headers; not of the weights."""
        found = hashlib.sha256((self.folder / "config.json").read_bytes())
        for name, header in sorted(self.headers.items()):
            found.update(f"{name} {(self.folder / name).stat().st_size}".encode() + header)
        return found.hexdigest()


def read_file(path: Path, names: Iterable[str], device: torch.device) -> dict[str, Tensor]:
    """Copy tensors from a mapped file into memory."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).to(device, copy=True) for name in names}


AGAIN = "Copy or download the folder again."


def files_of(folder: Path) -> dict[str, list[str]]:
    """Return the files that hold a folder's weights, with the tensors its index says they hold."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json: it must be the folder of one model, as save_pretrained "
            "of diffusers writes it; of a pipeline that is its transformer/"
        )
    if (folder / f"{NAME}.safetensors").is_file():
        return {f"{NAME}.safetensors": []}
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} has neither {NAME}.safetensors nor {INDEX}")
    files: dict[str, list[str]] = {}
    for tensor, name in read_json(folder / INDEX)["weight_map"].items():
        files.setdefault(name, []).append(tensor)
    return files


def header_of(path: Path) -> bytes:
    """Return the header of a safetensors file: what is where.

    Raises:
        ValueError: if the file is missing or cut off.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length)
        tensors = {n: e for n, e in json.loads(header).items() if n != "__metadata__"}
        end = 8 + length + max((e["data_offsets"][1] for e in tensors.values()), default=0)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}. {AGAIN}") from error
    except (ValueError, LookupError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is no safetensors file, or cut off. {AGAIN}") from error
    if path.stat().st_size != end:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, and by its header {end:,}. {AGAIN}"
        )
    return header


def entries_in(path: Path, header: bytes) -> dict[str, Entry]:
    """Return what the header of a file tells of its tensors."""
    told = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
    return {n: Entry(path, entry["dtype"], tuple(entry["shape"])) for n, entry in told.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: if it is none.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}. {AGAIN}") from error
    return content
