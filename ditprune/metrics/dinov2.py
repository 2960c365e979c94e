"""DINOv2's view of images, for the FD-DINOv2 of Stein et al. 2023 (arXiv 2306.04675)."""

from functools import cached_property

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.functional import InterpolationMode, resize
from transformers import Dinov2Model

from ditprune.metrics.features import FeatureExtractor, Features, measuring, weights_hash
from ditprune.metrics.frozen import Frozen, Network
from ditprune.metrics.pretrained import in_colour, load_frozen, standardized

SIZE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Dinov2(Frozen, FeatureExtractor):
    """The class token of DINOv2; `FrechetDistance` in it is FD-DINOv2. There are no logits.

    As https://github.com/layer6ai-labs/dgm-eval sees images: whatever their shape, 224x224 pixels,
    bicubic, smoothed where they shrink, rounded to 8 bits. The network is loaded on first use.
    """

    def __init__(self, weights: str = "facebook/dinov2-large") -> None:
        """Take a hub id or a local folder; the default is the network of the published numbers."""
        self.weights = weights

    def load(self) -> Network:
        """Return DINOv2, its positions on the grid that is used."""
        network = load_frozen(Dinov2Model, self.weights)
        embeddings = network.embeddings
        positions = as_dinov2_interpolates(
            embeddings.position_embeddings, SIZE // network.config.patch_size
        )
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=False)
        return network

    @cached_property
    def name(self) -> str:
        """Return `dinov2/` and the hash of the weights."""
        return f"dinov2/{weights_hash(self.network)}"

    def extract(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        """Return the features of images, in float32 on the CPU; grey ones are seen as colour."""
        with measuring(self.device):
            small = in_colour(images).to(self.device)
            small = resize(small, [SIZE, SIZE], InterpolationMode.BICUBIC, antialias=True)
            pool = class_tokens(self.network, small / 255)
        return Features(pool.cpu(), torch.empty(len(images), 0))


def class_tokens(network: Network, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
    """Return the normalised class tokens of pixels in [0, 1]."""
    if not len(pixels):
        return pixels.new_empty(0, network.config.hidden_size)
    return network(standardized(pixels, MEAN, STD)).pooler_output


@torch.no_grad()
def as_dinov2_interpolates(
    positions: Float[Tensor, "1 tokens d"], side: int
) -> Float[Tensor, "1 fewer d"]:
    """Return position embeddings for side x side patches, on the authors' grid.

    It is stretched by a tenth of a patch (https://github.com/facebookresearch/dinov2,
    `interpolate_pos_encoding`), where that of transformers is not.
    """
    token, places = positions[:, :1], positions[:, 1:]
    stored = round(places.shape[1] ** 0.5)
    if stored == side:
        return positions
    grid = places.unflatten(1, (stored, stored)).permute(0, 3, 1, 2)
    scale = (side + 0.1) / stored
    grid = interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([token, grid.flatten(2).transpose(1, 2)], dim=1)
