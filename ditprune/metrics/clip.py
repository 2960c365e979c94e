"""CLIP's view of images (Radford et al. 2021, arXiv 2103.00020), resized as CMMD does."""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers import CLIPModel

from ditprune.metrics.features import FeatureExtractor, Features, measuring, weights_hash
from ditprune.metrics.frozen import Frozen, Network
from ditprune.metrics.pretrained import in_colour, load_frozen, standardized

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipImages(Frozen, FeatureExtractor):
    """CLIP's image embeddings of length 1, for CMMD; there are no logits.

    Whatever their shape, images are brought to the network's square by bicubic interpolation that
    does not smooth first, as CMMD's authors do: numbers with another resizing do not compare
    (https://github.com/google-research/google-research/tree/master/cmmd, embedding.py).
    The network is loaded on first use.
    """

    def __init__(self, weights: str = "openai/clip-vit-large-patch14-336") -> None:
        """Take a hub id or a local folder; the default is the network of the published numbers."""
        self.weights = weights

    def load(self) -> Network:
        """Return CLIP."""
        return load_frozen(CLIPModel, self.weights)

    @cached_property
    def name(self) -> str:
        """Return `clip-cmmd/` and the hash of the weights."""
        return f"clip-cmmd/{weights_hash(self.network)}"

    def extract(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        """Return the features of images, in float32 on the CPU; grey ones are seen as colour."""
        size = self.network.config.vision_config.image_size
        with measuring(self.device):
            pixels = in_colour(images).to(self.device) / 255
            embeddings = embed_images(
                self.network, interpolate(pixels, (size, size), mode="bicubic")
            )
        return Features(embeddings.cpu(), torch.empty(len(images), 0))


def embed_images(network: Network, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
    """Return embeddings of length 1 of pixels in [0, 1], of the network's size."""
    if not len(pixels):
        return pixels.new_empty(0, network.config.projection_dim)
    said = network.get_image_features(pixel_values=standardized(pixels, MEAN, STD))
    return normalize(embeddings_in(said))


def embeddings_in(said: Any) -> Float[Tensor, "n d"]:
    """Return the projected embeddings: transformers 4 gives them bare, 5 among other things."""
    embeddings: Tensor = getattr(said, "pooler_output", said)
    return embeddings
