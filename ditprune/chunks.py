"""Samples on disk, chunk by chunk: images as PNGs, and one file of what was measured of them."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ditprune.atomic import writing
from ditprune.sampling_plan import Chunk

IDS, HASHES = "ids", "sha256"
PNG_END = b"IEND\xaeB`\x82"
MODES = {1: "L", 3: "RGB"}


class Held(NamedTuple):
    """What there is of a chunk on disk, whole and verified."""

    images: UInt8[Tensor, "n c h w"]
    columns: dict[str, Tensor]
    """A row for each sample: what was measured of its image, by name."""


def write_chunk(
    chunk: Chunk,
    home: Path,
    images: UInt8[Tensor, "n c h w"],
    columns: Mapping[str, Tensor],
    manifest: str,
) -> None:
    """Write a chunk, its file last: the chunk is there when that is."""
    for path, image in zip(chunk.images(home), images, strict=True):
        with writing(path) as draft:
            as_picture(image).save(draft, format="PNG")
    write_columns(chunk, home, {**columns, HASHES: hashes_of(images)}, manifest)


def write_columns(chunk: Chunk, home: Path, columns: Mapping[str, Tensor], manifest: str) -> None:
    """Write what was measured of a chunk's images, which are there already."""
    with writing(chunk.file(home)) as draft:
        save_file({IDS: torch.tensor(chunk.ids), **columns}, draft, {"manifest": manifest})


def find_chunk(chunk: Chunk, home: Path, manifest: str) -> Held | None:
    """Return a chunk, or None if it must be drawn: a file is missing or damaged, or not its own.

    Raises:
        ValueError: if it belongs to another configuration.
    """
    try:
        columns = read_columns(chunk, home, manifest)
        images = read_pictures(chunk, home)
    except (OSError, SyntaxError, RuntimeError, SafetensorError):  # Pillow's are all of the first
        return None
    expected = {IDS: torch.tensor(chunk.ids), HASHES: hashes_of(images)}
    whole = all(name in columns and torch.equal(columns[name], x) for name, x in expected.items())
    return Held(images, columns) if whole else None


def read_columns(chunk: Chunk, home: Path, manifest: str, prefix: str = "") -> dict[str, Tensor]:
    """Return those columns of a chunk whose names start so.

    Raises:
        ValueError: if they belong to another configuration.
    """
    path = chunk.file(home)
    with safe_open(path, framework="pt") as file:
        found = (file.metadata() or {}).get("manifest")
        if found != manifest:
            raise ValueError(
                f"{path} belongs to samples of another configuration: its manifest is {found}, "
                f"that of {home / 'manifest.json'} is {manifest}. Was it copied from elsewhere? "
                "Delete it, and it is drawn again"
            )
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def read_pictures(chunk: Chunk, home: Path) -> UInt8[Tensor, "n c h w"]:
    """Return a chunk's images."""
    return torch.stack([read_picture(path) for path in chunk.images(home)])


def read_picture(path: Path) -> UInt8[Tensor, "c h w"]:
    """Return one image; Pillow alone would not mind that its file is cut off behind the pixels."""
    content = path.read_bytes()
    if not content.endswith(PNG_END):
        raise OSError(f"{path} is cut off")
    with Image.open(io.BytesIO(content)) as picture:
        pixels: Tensor = pil_to_tensor(picture)
    return pixels


def as_picture(image: UInt8[Tensor, "c h w"]) -> Image.Image:
    """Return a grey image, or one in colour.

    Raises:
        ValueError: if it is neither.
    """
    if len(image) not in MODES:
        raise ValueError(
            f"images are kept as PNGs, of 1 or 3 channels; sample() returned {len(image)}"
        )
    pixels = image.permute(1, 2, 0).contiguous().squeeze(2)
    return Image.fromarray(pixels.numpy(), MODES[len(image)])


def hashes_of(images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n 32"]:
    """Return the SHA-256 of every image's pixels, in the order of Pillow's `tobytes`."""
    rows = images.permute(0, 2, 3, 1).contiguous().numpy()
    digests = b"".join(hashlib.sha256(row.tobytes()).digest() for row in rows)
    return torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, 32)
