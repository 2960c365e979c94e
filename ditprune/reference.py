"""Features of the real images, extracted once for each network and kept on disk."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from jaxtyping import UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditprune.atomic import writing
from ditprune.distributed import barrier, on_first_rank, share_of_rank
from ditprune.meters import rows
from ditprune.metrics import FeatureExtractor, Features
from ditprune.samples import joined

ABOUT = "features of real images that ditprune compared with; without them they are extracted anew"

Images = Iterable[UInt8[Tensor, "b c h w"]]


class Source(NamedTuple):
    """Which images there are."""

    num_images: int
    num_batches: int
    sha256: str
    """Of all shapes and pixels, in order."""

    @property
    def name(self) -> str:
        """Return `1437 images, 0123456789abcdef`."""
        return f"{self.num_images} images, {self.sha256[:16]}"


class Reference(NamedTuple):
    """Real images that generated ones are compared with: their features, batch by batch."""

    source: Source
    files: list[Path]

    @property
    def features(self) -> Features:
        """The features of all images."""
        return Features(**joined([load_file(path) for path in self.files]))


def extract_reference(
    images: Callable[[], Images], extractor: FeatureExtractor, folder: Path
) -> Reference:
    """Extract the features of real images that have none on disk yet; every process its share.

    The images are read each time, to see whether they are still the same, and only if a batch has
    no features, the network.

    Args:
        images: gives them from the beginning, in the same batches on every rank.
        extractor: the network.
        folder: where features are kept: a folder for each pair of images and network.
    """
    source = on_first_rank(lambda: identify(images()))
    digest = hashlib.sha256(f"{extractor.name} {source}".encode()).hexdigest()[:16]
    home = folder / digest
    files = [home / f"{index:06d}.safetensors" for index in range(source.num_batches)]
    on_first_rank(lambda: tell(home, source, extractor))
    if not on_first_rank(lambda: all(is_whole(path) for path in files)):
        for path, batch in share_of_rank(zip(files, images(), strict=True)):
            if not is_whole(path):
                features = extractor.extract(batch).tensors()
                with writing(path) as draft:
                    save_file({name: rows(x, len(x)) for name, x in features.items()}, draft)
    barrier()
    return Reference(source, files)


def identify(images: Images) -> Source:
    """Read all images, and tell which they are."""
    digest, num_images, num_batches = hashlib.sha256(), 0, 0
    for batch in images:
        digest.update(f"{tuple(batch.shape)}".encode())
        digest.update(batch.contiguous().numpy().data)
        num_images, num_batches = num_images + len(batch), num_batches + 1
    if not num_images:
        raise ValueError(
            "there are no real images to compare with: reference_dataloader() is empty"
        )
    return Source(num_images, num_batches, digest.hexdigest())


def tell(home: Path, source: Source, extractor: FeatureExtractor) -> None:
    """Write down what the files are of."""
    about = (
        "features of the real images that ditprune compares with; it extracts them again if gone"
    )
    content = {"about": about, "features": extractor.name, **source._asdict()}
    with writing(home / "manifest.json") as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n")


def is_whole(path: Path) -> bool:
    """Tell whether a file of features can be read."""
    try:
        load_file(path)
    except (OSError, SafetensorError):
        return False
    return True
