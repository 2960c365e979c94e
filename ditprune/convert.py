"""Images for other tools: the npz of ADM's evaluator, and a folder of PNGs: `ditprune convert`."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from rich.progress import track
from torch import Tensor

from ditprune.atomic import writing, writing_folder
from ditprune.chunks import as_picture
from ditprune.image_files import image_paths, is_npz, read_image, read_images
from ditprune.metrics.pretrained import in_colour


def convert(images: Path, target: Path, seed: int = 0) -> None:
    """Write images as another tool reads them.

    Args:
        images: a folder of them, or an npz as ADM's evaluator writes it.
        target: an .npz for ADM's evaluator, which takes a folder; or a folder of PNGs, as clean-fid
            and torch-fidelity read it.
        seed: of the order of images in an npz. It is shuffled, for ADM's inception score takes
            5,000 after 5,000; where each image comes from is written beside it, as `.order.npy`.

    Raises:
        ValueError: if images cannot be read, or differ in size, or the target holds some already.
    """
    if is_npz(images) and is_npz(target):
        raise ValueError(f"{images} is an npz already: convert it to a folder first")
    if is_npz(target):
        write_npz(image_paths(images), target, seed)
    else:
        write_folder(images, target)


def write_npz(paths: list[Path], target: Path, seed: int) -> None:
    """Write images to an npz, of which one is in memory at a time."""
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed)).numpy()
    shape = row_of(paths[0]).shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), *shape)}
    with (
        writing(target) as draft,
        zipfile.ZipFile(draft, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for index in track(order, f"writing {target.name}"):
            row = row_of(paths[index])
            if row.shape != shape:
                raise ValueError(
                    f"{paths[index]} is {list(row.shape)}, and {paths[0]} is {list(shape)}: an "
                    "npz takes images of one size"
                )
            file.write(row.numpy().tobytes())
    with writing(target.with_suffix(".order.npy")) as draft, draft.open("wb") as beside:
        np.save(beside, order)


def row_of(path: Path) -> UInt8[Tensor, "h w 3"]:
    """Return an image as ADM's evaluator reads it: grey as colour, channels last."""
    return in_colour(read_image(path))[0].permute(1, 2, 0)


def write_folder(images: Path, folder: Path) -> None:
    """Write images as PNGs, numbered in order, into a folder that has no files yet."""
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty, and other tools would take what it holds along")
    count = 0
    with writing_folder(folder) as draft:
        for batch in track(read_images(images), f"writing {folder.name}"):
            for image in batch:
                as_picture(image).save(draft / f"{count:06d}.png")
                count += 1
