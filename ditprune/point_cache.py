"""Points of trajectories on disk as they are reached: an interrupted run goes on with the next."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditprune.atomic import writing
from ditprune.families import Condition, Family
from ditprune.prompt_cache import once, parts_of, take_in
from ditprune.prompts import Encoded

SAMPLED = 4096
"""Numbers of each weight that tell models apart; what prunes or trains one changes some of them."""


def reach_once(path: Path, reach: Callable[[], Float[Tensor, "1 ..."]]) -> Float[Tensor, "1 ..."]:
    """Return latents from a file, which is written where it is not there or damaged."""
    try:
        return load_file(path)["latents"]
    except (OSError, SafetensorError):
        latents = reach().cpu()
        with writing(path) as draft:
            save_file({"latents": latents.contiguous()}, draft)
        return latents


def digest(model: nn.Module, family: Family, encoded: Encoded, settings: object) -> str:
    """Return a name for everything that decides where trajectories lead."""
    plain, tensors = parts_of(encoded.scheduler)
    kinds = [type(model).__name__, type(encoded.scheduler).__name__, repr(family)]
    configs = [repr(getattr(model, "config", None)), repr(encoded.scheduler.config)]
    told = [*kinds, *configs, plain, encoded.latents_shape, settings]
    found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, tensor in {**tensors, **tensors_of(encoded.condition)}.items():
        take_in(found, name, tensor)
    for name, weight in model.state_dict().items():
        # An odd stride meets other columns in every row.
        take_in(found, name, weight.flatten()[:: weight.numel() // SAMPLED | 1])
    return found.hexdigest()[:16]


def tensors_of(condition: Condition) -> dict[str, Tensor]:
    """Return named tensors, or labels under a name; what is alike for all samples in one row."""
    named = {"labels": condition} if isinstance(condition, Tensor) else condition
    return {name: once(x) for name, x in named.items()}
