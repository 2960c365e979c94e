"""Which images a set holds, whatever files they come from."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jaxtyping import UInt8
from torch import Tensor

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


class Tally:
    """Tells which images went by."""

    def __init__(self) -> None:
        """Begin with none."""
        self.num_images = self.num_batches = 0
        self.digest = hashlib.sha256()

    def watch(self, images: Images) -> Iterator[UInt8[Tensor, "b c h w"]]:
        """Yield images, and count them in."""
        for batch in images:
            self.add(batch)
            yield batch

    def add(self, batch: UInt8[Tensor, "b c h w"]) -> None:
        """Count a batch in."""
        self.digest.update(f"{tuple(batch.shape)}".encode())
        self.digest.update(batch.contiguous().numpy().data)
        self.num_images += len(batch)
        self.num_batches += 1

    @property
    def source(self) -> Source:
        """Return which they were."""
        return Source(self.num_images, self.num_batches, self.digest.hexdigest())


def identify(images: Images) -> Source:
    """Read all images, and tell which they are."""
    tally = Tally()
    for batch in images:
        tally.add(batch)
    return tally.source
