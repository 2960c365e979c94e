"""How well images fit their prompts (Hessel et al. 2021, arXiv 2104.08718), by CLIP."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms.functional import InterpolationMode, center_crop, resize
from transformers import CLIPModel, CLIPTokenizer

from ditprune.metrics.clip import embed_images, embeddings_in
from ditprune.metrics.features import building, measuring
from ditprune.metrics.pretrained import Network, in_colour, load_frozen


class ClipScores(NamedTuple):
    """The scores of some images with their prompts."""

    cosine: Float64[Tensor, " n"]
    """Of each image with its prompt, in [-1, 1]; neither clipped nor scaled."""
    num_truncated: int
    """Prompts of which CLIP has not heard the end."""

    def mean(self) -> float:
        """Return the mean cosine, as OBS-Diff reports it."""
        return self.cosine.mean().item()

    def percent(self) -> float:
        """Return torchmetrics' number: 100 times the mean cosine, and never below zero."""
        return max(100 * self.mean(), 0.0)


class ClipScore:
    """Scores images with their prompts; numbers of other networks do not compare.

    Not on features: an image is measured with its own prompt, and not with a set. The network is
    loaded on first use.
    """

    def __init__(self, weights: str = "openai/clip-vit-large-patch14") -> None:
        """Take a hub id or a local folder, with the tokenizer beside the weights."""
        self.weights = weights

    @cached_property
    def network(self) -> Network:
        """Return the network; the first call loads it."""
        return load_frozen(CLIPModel, self.weights)

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """Return the tokenizer; the first call loads it."""
        return load_tokenizer(self.weights)

    def to(self, device: torch.device | str) -> "ClipScore":
        """Move the network, and return the scorer."""
        self.network.to(device)
        return self

    def score(self, images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]) -> ClipScores:
        """Return the scores of images with the prompts of the same places.

        Raises:
            ValueError: if there are not as many prompts as images, or none.
        """
        if len(images) != len(prompts) or not len(prompts):
            raise ValueError(
                "CLIP scores need a prompt for each image, and an image; got "
                f"{len(images)} images and {len(prompts)} prompts"
            )
        device = self.network.device
        with measuring(device):
            size = self.network.config.vision_config.image_size
            seen = embed_images(self.network, as_clip_resizes(images.to(device), size))
            heard, num_truncated = self.embed_texts(prompts)
        return ClipScores(clip_score(seen, heard).cpu(), num_truncated)

    def embed_texts(self, prompts: Sequence[str]) -> tuple[Float[Tensor, "n d"], int]:
        """Return the prompts' embeddings of length 1, and how many were too long."""
        limit = self.network.config.text_config.max_position_embeddings
        # What is cut off is cut before the end token, which is where the embedding is read.
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        lengths = [len(ids) for ids in self.tokenizer(list(prompts), verbose=False)["input_ids"]]
        said = self.network.get_text_features(**tokens.to(self.network.device))
        return normalize(embeddings_in(said)), sum(length > limit for length in lengths)


def clip_score(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Return the cosine of each image's embedding with that of its own text."""
    return (normalize(images.double()) * normalize(texts.double())).sum(1)


def as_clip_resizes(images: UInt8[Tensor, "n c h w"], size: int) -> Float[Tensor, "n 3 s s"]:
    """Return pixels in [0, 1] of the central square, smoothed where it shrinks, as CLIP's own."""
    square = resize(in_colour(images), size, InterpolationMode.BICUBIC, antialias=True)
    pixels: Tensor = center_crop(square, size).float() / 255
    return pixels


def load_tokenizer(weights: str) -> CLIPTokenizer:
    """Return the tokenizer of a hub id or a local folder.

    Raises:
        ValueError: if it cannot be had.
    """
    try:
        with building():
            tokenizer = CLIPTokenizer.from_pretrained(weights)
        if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
            raise ValueError("it knows no words")  # transformers 5 makes one up for no files
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load CLIP's tokenizer from {weights!r}: {error}. Give, as weights=, a hub id "
            "and a network to reach it, or a folder with vocab.json and merges.txt"
        ) from error
    return tokenizer
