"""Networks of transformers, frozen: what they need to be extractors."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from ditprune.metrics.features import building

Network = Any
"""A network of transformers, whose types leave open what its config holds and where it can move."""


def load_frozen(kind: type[PreTrainedModel], weights: str) -> Network:
    """Return a network in float32 from a hub id or a local folder; only safetensors are read.

    Raises:
        ValueError: if the weights cannot be had, or are not this network's.
    """
    try:
        with building():
            loaded: Any = kind.from_pretrained(
                weights, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot load {kind.__name__} from {weights!r}: {error}. Give, as weights=, a hub id "
            "and a network to reach it, or a folder with config.json and model.safetensors"
        ) from error
    network, found = loaded
    if found["missing_keys"]:  # transformers would draw them at random
        raise ValueError(
            f"{weights!r} is no {kind.__name__}: it lacks {sorted(found['missing_keys'])[0]}. Give "
            "another one as weights="
        )
    return network.eval()


def in_colour(images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """Return grey images as colour, and colour images.

    Raises:
        ValueError: if the images have neither 1 nor 3 channels.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(
            f"this network reads images of 1 or 3 channels; got the shape {tuple(images.shape)}. "
            "Give n x channels x height x width."
        )
    return images.expand(-1, 3, -1, -1)


def standardized(
    pixels: Float[Tensor, "n 3 h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "n 3 h w"]:
    """Return pixels in [0, 1] less the mean of each channel, over its deviation."""
    return (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
