"""Which images a set holds, whatever files they come from."""

import hashlib
from collections.abc import Iterable
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


def identify(images: Images) -> Source:
    """Read all images, and tell which they are."""
    digest, num_images, num_batches = hashlib.sha256(), 0, 0
    for batch in images:
        digest.update(f"{tuple(batch.shape)}".encode())
        digest.update(batch.contiguous().numpy().data)
        num_images, num_batches = num_images + len(batch), num_batches + 1
    return Source(num_images, num_batches, digest.hexdigest())
