"""CLIP (Radford et al. 2021, arXiv 2103.00020) as a judge of images and their prompts."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms.functional import InterpolationMode, center_crop, resize
from transformers import CLIPModel, CLIPTokenizer

from ditprune.metrics.clip import embed_images, embeddings_in
from ditprune.metrics.features import measuring
from ditprune.metrics.frozen import Frozen, Network
from ditprune.metrics.pretrained import in_colour, load_frozen, load_tokenizer, tokenized
from ditprune.metrics.prompted import PromptMetric, demand_prompts


class PromptedClip(Frozen, PromptMetric):
    """Scores that are made of CLIP's cosines; numbers of other networks do not compare."""

    def __init__(self, weights: str) -> None:
        """Take a hub id or a local folder, with the tokenizer beside the weights."""
        self.weights = weights

    def load(self) -> Network:
        """Return CLIP."""
        return load_frozen(CLIPModel, self.weights)

    @cached_property
    def tokenizer(self) -> Any:
        """Return the tokenizer; the first call loads it."""
        return load_tokenizer(CLIPTokenizer, self.weights, "vocab.json and merges.txt")

    def cosines(
        self, images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]
    ) -> Float64[Tensor, " n"]:
        """Return the cosine of each image with the prompt of the same place, on the CPU.

        Prompts that are too long are cut, and a warning counts them.

        Raises:
            ValueError: if there are not as many prompts as images, or none.
        """
        demand_prompts(images, prompts)
        with measuring(self.device):
            size = self.network.config.vision_config.image_size
            seen = embed_images(self.network, as_clip_resizes(images.to(self.device), size))
            return cosines(seen, self.embed_texts(prompts)).cpu()

    def embed_texts(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return the prompts' embeddings of length 1."""
        limit = self.network.config.text_config.max_position_embeddings
        tokens = tokenized(self.tokenizer, prompts, limit).to(self.device)
        return normalize(embeddings_in(self.network.get_text_features(**tokens)))


def cosines(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Return the cosine of each row of x with that of y."""
    return (normalize(x.double()) * normalize(y.double())).sum(1)


def as_clip_resizes(images: UInt8[Tensor, "n c h w"], size: int) -> Float[Tensor, "n 3 s s"]:
    """Return pixels in [0, 1] of the central square, smoothed where it shrinks, as CLIP's own."""
    square = resize(in_colour(images), size, InterpolationMode.BICUBIC, antialias=True)
    pixels: Tensor = center_crop(square, size).float() / 255
    return pixels
