"""Images from files: a folder of them, or one npz as ADM's evaluator reads."""

import logging
import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
BATCH_SIZE = 50
DAMAGED = (zipfile.BadZipFile, zlib.error)
"""What reading a damaged npz raises, beside errors of the file itself."""

log = logging.getLogger(__name__)


def read_images(path: Path) -> Iterator[UInt8[Tensor, "n c h w"]]:
    """Yield the images of a folder, in the order of their names, or of an npz; batch by batch.

    Folders are searched to any depth, as clean-fid does, and 2.png comes before 10.png. An npz
    holds `arr_0` [n, h, w, c] in 8 bits, as ADM's evaluator reads and writes it
    (https://github.com/openai/guided-diffusion). Grey images have one channel, all others three. A
    batch holds images of one size.

    Raises:
        ValueError: if there are no images, or one cannot be read or has transparent parts.
    """
    return read_npz(path) if is_npz(path) else read_folder(path)


def is_npz(path: Path) -> bool:
    """Tell whether a path is named as an npz is."""
    return path.suffix.lower() == ".npz"


def read_folder(folder: Path) -> Iterator[UInt8[Tensor, "n c h w"]]:
    """Yield the images of a folder."""
    return of_one_size(map(read_image, image_paths(folder)))


def of_one_size(images: Iterable[UInt8[Tensor, "1 c h w"]]) -> Iterator[UInt8[Tensor, "n c h w"]]:
    """Yield images in batches of one size, in their order."""
    for _, same in groupby(images, key=lambda image: image.shape):
        for part in parts(same):
            yield torch.cat(part)


def image_paths(folder: Path) -> list[Path]:
    """Return the images of a folder, by name; what is no image is counted in a warning.

    Raises:
        ValueError: if there are none.
    """
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=in_order)
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(
            f"there are no images in {folder}: give a folder of {', '.join(sorted(SUFFIXES))} "
            "files, or an .npz"
        )
    if len(paths) < len(files):
        log.warning("%d files in %s are no images, and left out", len(files) - len(paths), folder)
    return paths


def in_order(path: Path) -> list[list[tuple[int, str]]]:
    """Return what sorts names as people do: 2.png before 10.png."""
    pieces = (re.split(r"(\d+)", part) for part in path.parts)
    return [[(int(x), "") if x.isdigit() else (-1, x) for x in piece] for piece in pieces]


def parts(images: Iterator[UInt8[Tensor, "1 c h w"]]) -> Iterator[list[Tensor]]:
    """Yield lists of as many images as a batch has."""
    held: list[Tensor] = []
    for image in images:
        held.append(image)
        if len(held) == BATCH_SIZE:
            yield held
            held = []
    if held:
        yield held


def read_image(path: Path) -> UInt8[Tensor, "1 c h w"]:
    """Read one image: grey as one channel, what has colours as three.

    Raises:
        ValueError: if it cannot be read, or is not one of 8 bits without transparent parts.
    """
    try:
        with Image.open(path) as image:
            mode, palette = image.mode, "transparency" in image.info
            pixels = image if mode == "L" else image.convert("RGB")
            pixels.load()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {path}: {error}") from error
    if palette or mode not in ("L", "RGB", "P", "CMYK", "YCbCr"):
        raise ValueError(
            f"{path} is an image of mode {mode}{' with transparent parts' if palette else ''}: "
            "save it in 8 bits, grey or in colours, without transparency"
        )
    return pil_to_tensor(pixels).unsqueeze(0)


def read_npz(path: Path) -> Iterator[UInt8[Tensor, "n c h w"]]:
    """Yield the images of an npz, of which a batch is in memory at a time."""
    shape = npz_shape(path)
    starts = range(0, shape[0], BATCH_SIZE)
    sizes = [min(BATCH_SIZE, shape[0] - start) for start in starts]
    return stream(path, [(size, *shape[1:]) for size in sizes])


def npz_shape(path: Path) -> tuple[int, int, int, int]:
    """Return the number of an npz' images, their height, width and channels.

    Raises:
        ValueError: if it holds none.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            shape, in_columns, dtype = read_header(file)
    except (OSError, EOFError, KeyError, ValueError, *DAMAGED) as error:
        raise ValueError(
            f"cannot read images from {path}: {error}. It must hold them as arr_0 [n, h, w, c]"
        ) from error
    is_images = len(shape) == 4 and shape[0] and shape[3] in (1, 3)
    if dtype != np.uint8 or not is_images or in_columns:
        raise ValueError(
            f"arr_0 of {path} must hold images [n, h, w, 1 or 3] in 8 bits, row after row; it is "
            f"{dtype} of shape {list(shape)}"
        )
    return shape[0], shape[1], shape[2], shape[3]


def read_header(
    file: zipfile.ZipExtFile | IO[bytes],
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and type of an array, and leave the file where its values start."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    return read[np.lib.format.read_magic(file)](file)


def stream(path: Path, shapes: Sequence[tuple[int, ...]]) -> Iterator[UInt8[Tensor, "n c h w"]]:
    """Yield the images of an npz, in batches of these shapes."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        read_header(file)
        for shape in shapes:
            try:
                content = file.read(math.prod(shape))
            except DAMAGED as error:
                raise ValueError(f"{path} is damaged: {error}") from error
            if len(content) < math.prod(shape):
                raise ValueError(f"{path} is cut off: arr_0 holds fewer images than it says")
            pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)
            # In memory as those of a folder are: it decides which kernels run.
            yield pixels.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)


def count_images(path: Path) -> int:
    """Return the number of images in a folder or an npz.

    Raises:
        ValueError: if there are none.
    """
    return npz_shape(path)[0] if is_npz(path) else len(image_paths(path))


def demand_any_order(path: Path) -> None:
    """Raise a ValueError if images come class after class.

    Raises:
        ValueError: if the labels beside them (arr_1), or the folders they lie in, tell so.
    """
    classes = labels_of(path) if is_npz(path) else [p.parent for p in image_paths(path)]
    num_runs = 1 + sum(a != b for a, b in pairwise(classes))
    share = sum((count / len(classes)) ** 2 for count in Counter(classes).values())
    if len(set(classes)) > 1 and num_runs < len(classes) * (1 - share) / 2:
        raise ValueError(
            f"the images of {path} are sorted by {'class' if is_npz(path) else 'folder'}: so ADM's "
            "inception score, which takes 5,000 after 5,000 as they come, would be far too low. "
            "Shuffle them, as `ditprune convert` to an npz does, or use InceptionScore, which "
            "shuffles"
        )


def labels_of(path: Path) -> list[Any]:
    """Return the class of each image of an npz, if it tells them.

    Raises:
        ValueError: if they cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            labels = file["arr_1"] if "arr_1" in file.files else np.zeros(0)
    except (OSError, EOFError, ValueError, *DAMAGED) as error:
        raise ValueError(f"cannot read the classes (arr_1) of {path}: {error}") from error
    return [tuple(row) for row in labels.reshape(len(labels), -1).tolist()]
