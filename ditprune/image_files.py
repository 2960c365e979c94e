"""Images from files: a folder of them, or one npz as ADM's evaluator reads."""

import logging
import zipfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
BATCH_SIZE = 50

log = logging.getLogger(__name__)


def read_images(path: Path) -> Iterator[UInt8[Tensor, "n c h w"]]:
    """Yield the images of a folder, in the order of their names, or of an npz; batch by batch.

    Folders are searched to any depth, as clean-fid does; an npz holds `arr_0` [n, h, w, c] in 8
    bits, as ADM's evaluator (https://github.com/openai/guided-diffusion) reads and writes it. Grey
    images have one channel, all others three. A batch holds images of one size.

    Raises:
        ValueError: if there are no images, or one cannot be read or has transparent parts.
    """
    return read_npz(path) if path.suffix == ".npz" else read_folder(path)


def read_folder(folder: Path) -> Iterator[UInt8[Tensor, "n c h w"]]:
    """Yield the images of a folder; what is no image is counted in a warning."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(
            f"there are no images in {folder}: give a folder of {', '.join(sorted(SUFFIXES))} "
            "files, or an .npz"
        )
    if len(paths) < len(files):
        log.warning("%d files in %s are no images, and left out", len(files) - len(paths), folder)
    return (
        torch.cat(list(part))
        for _, same in groupby(map(read_image, paths), key=lambda image: image.shape)
        for part in parts(same)
    )


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
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"cannot read the image {path}: {error}") from error
    if palette or mode not in ("L", "RGB", "P", "CMYK", "YCbCr"):
        raise ValueError(
            f"{path} is an image of mode {mode}{' with transparent parts' if palette else ''}: "
            "save it in 8 bits, grey or in colours, without transparency"
        )
    return pil_to_tensor(pixels).unsqueeze(0)


def read_npz(path: Path) -> Iterator[UInt8[Tensor, "n c h w"]]:
    """Yield the images of an npz."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["arr_0"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"cannot read images from {path}: {error}. It must hold them as arr_0 [n, h, w, c]"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(
            f"arr_0 of {path} must hold images [n, h, w, c] in 8 bits; it is {images.dtype} of "
            f"shape {list(images.shape)}"
        )
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
    return (
        # In memory as those of a folder are: it decides which kernels run.
        batch.clone(memory_format=torch.contiguous_format)
        for batch in channels_first.split(BATCH_SIZE)
    )
