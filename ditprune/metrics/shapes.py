"""What the zoo's reader sees in pictures of shapes: features, and whether their prompts hold."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from ditprune.metrics.features import (
    FeatureExtractor,
    Features,
    load_shipped,
    measuring,
    weights_hash,
)
from ditprune.metrics.frozen import Frozen
from ditprune.metrics.prompted import PromptMetric, demand_prompts
from ditprune.zoo.pretrained import ZOO
from ditprune.zoo.shapes import IMAGE_SIZE, UNSAID, attributes, parse
from ditprune.zoo.shapes_parts import ShapesReader

READER_WEIGHTS = ZOO / "shapes-judges" / "reader.safetensors"
SHAPE = (3, IMAGE_SIZE, IMAGE_SIZE)


class ShapesClassifier(Frozen, FeatureExtractor):
    """The zoo's reader of coloured shapes: 128 features of 3 x 64 x 64 images.

    There are no logits: it tells several attributes, and not one class. Loaded on first use.
    """

    def __init__(self, weights: str | Path = READER_WEIGHTS) -> None:
        """Take a safetensors file; the default ships with the package."""
        self.weights = Path(weights)

    def load(self) -> ShapesReader:
        """Return the reader."""
        return load_shipped(ShapesReader, self.weights, "the reader of shapes")

    @cached_property
    def name(self) -> str:
        """Return `shapes-classifier/` and the hash of the weights."""
        return f"shapes-classifier/{weights_hash(self.network)}"

    def extract(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        """Return the features of images, in float32 on the CPU; n may be zero."""
        with measuring(self.device):
            pixels = self._pixels(images)
            return Features(self.network.features(pixels).cpu(), torch.empty(len(images), 0))

    def read(self, images: UInt8[Tensor, "n c h w"]) -> dict[str, Float[Tensor, "n values"]]:
        """Return the logits of every attribute, on the CPU."""
        with measuring(self.device):
            heads = self.network.heads(self._pixels(images))
            return {name: logits.cpu() for name, logits in heads.items()}

    def _pixels(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n 3 64 64"]:
        if images.shape[1:] != SHAPE:
            raise ValueError(
                f"the reader of shapes takes images of shape (n, {', '.join(map(str, SHAPE))}); "
                f"got {tuple(images.shape)}. It knows the pictures of shapes-flux alone."
            )
        return images.to(self.device).float() / 127.5 - 1


class AttributeAccuracy(PromptMetric):
    """Whether a picture of shapes shows all that its caption says: 100 if so, else 0."""

    def __init__(self, weights: str | Path = READER_WEIGHTS) -> None:
        """Take the weights of `ShapesClassifier`."""
        self.classifier = ShapesClassifier(weights)

    @cached_property
    def name(self) -> str:
        """Return `attributes/`, the reader's name and the unit."""
        return f"attributes/{self.classifier.name}/x100"

    def score(
        self, images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]
    ) -> Float64[Tensor, " n"]:
        """Return 100 for every image of which all attributes are read as its caption has them.

        Raises:
            ValueError: if a caption is none of shapes, or there are not as many as images.
        """
        demand_prompts(images, prompts)
        said = torch.tensor([attributes(parse(text)) for text in prompts])
        read = torch.stack([x.argmax(1) for x in self.classifier.read(images).values()], 1)
        right = (read == said) | (said == UNSAID)
        return 100 * right.all(1).double()

    def to(self, device: torch.device | str) -> "AttributeAccuracy":
        """Move the network, and return the metric."""
        self.classifier.to(device)
        return self
