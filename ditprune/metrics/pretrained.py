"""Networks of transformers, frozen: what they need to be extractors."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ditprune.metrics.features import building
from ditprune.metrics.frozen import Network
from ditprune.zoo.pretrained import locate

log = logging.getLogger(__name__)


def load_frozen(kind: type[PreTrainedModel], weights: str) -> Network:
    """Return a network in float32 from the zoo, a hub id or a folder; only safetensors are read.

    Raises:
        ValueError: if the weights cannot be had, or are not this network's.
    """
    try:
        with building():
            loaded: Any = kind.from_pretrained(
                locate(weights),
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot load {kind.__name__} from {weights!r}: {error}. Give, as weights=, a hub id "
            "and a network to reach it, or a folder with config.json and model.safetensors"
            f"{address(weights)}"
        ) from error
    network, found = loaded
    if found["missing_keys"]:  # transformers would draw them at random
        raise ValueError(
            f"{weights!r} is no {kind.__name__}: it lacks {sorted(found['missing_keys'])[0]}. Give "
            "another one as weights="
        )
    return network.eval()


def address(weights: str) -> str:
    """Say where the files of a hub id can be downloaded; of a path, nothing."""
    on_hub = weights.count("/") <= 1 and not Path(weights).is_absolute()
    return f" of https://huggingface.co/{weights}" if on_hub and not Path(weights).exists() else ""


def load_tokenizer(
    kind: type[PreTrainedTokenizerBase], weights: str, files: str, option: str = "weights="
) -> Any:
    """Return the tokenizer of the zoo, a hub id or a local folder.

    Args:
        kind: its class.
        weights: hub id or folder.
        files: which it needs there, for the error.
        option: that named the folder, for the error.

    Raises:
        ValueError: if it cannot be had.
    """
    try:
        with building():
            tokenizer = kind.from_pretrained(locate(weights))
        if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
            raise ValueError("it knows no words")  # transformers 5 makes one up for no files
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"cannot load the tokenizer from {weights!r}: {error}. Give, as {option}, a hub id and "
            f"a network to reach it, or a folder with {files}{address(weights)}"
        ) from error
    return tokenizer


def tokenized(tokenizer: Any, prompts: Sequence[str], limit: int) -> Any:
    """Return the tokens of prompts, all of one length; warn of those whose end is cut off.

    That length is the limit, so that a prompt's numbers do not depend on the others'.
    """
    lengths = [len(ids) for ids in tokenizer(list(prompts), verbose=False)["input_ids"]]
    if num_cut := sum(length > limit for length in lengths):
        log.warning(
            "%d of %d prompts have more than %d tokens; the network does not read their ends",
            num_cut,
            len(prompts),
            limit,
        )
    # What is cut off is cut before the end token, which is where CLIP's embedding is read.
    return tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
    )


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
