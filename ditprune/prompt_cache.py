"""Encoded prompts on disk: text encoders are large, and prompts are the same in many runs."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ditprune.atomic import writing
from ditprune.distributed import on_first_rank
from ditprune.families import Conditional
from ditprune.families.conditional import named
from ditprune.prompts import Encoded, encode, unmoved

CONDITION, SCHEDULER = "condition.", "scheduler."
"""Begin the names of tensors in the file."""


def encode_once(
    folder: Path,
    pipeline: DiffusionPipeline,
    family: Conditional,
    prompts: Sequence[str],
    **settings: Any,
) -> Encoded:
    """Return `encode(...)` from a file in a folder, which is written where it is not there.

    Its name is a digest of prompts, settings and pipeline, text encoders' weights included. A
    damaged file is written again. In a process group the first rank alone encodes, and all must
    call this.

    Raises:
        ValueError: as `encode` does.
    """

    def written() -> Path:
        path = folder / f"{digest(pipeline, prompts, settings)}.safetensors"
        if read(path, pipeline.scheduler, len(prompts)) is None:
            write(path, encode(pipeline, family, prompts, **settings))
        return path

    encoded = read(on_first_rank(written), pipeline.scheduler, len(prompts))
    assert encoded is not None
    return encoded


def digest(pipeline: DiffusionPipeline, prompts: Sequence[str], settings: Any) -> str:
    """Return a name for everything that decides what prompts become."""
    told = [type(pipeline).__name__, list(prompts), settings, *descriptions(pipeline)]
    found = hashlib.sha256(json.dumps(told, sort_keys=True, default=described).encode())
    for name, part in pipeline.components.items():
        if name.startswith("text_encoder") and isinstance(part, nn.Module):
            for key, tensor in part.state_dict().items():
                take_in(found, key, tensor)
    return found.hexdigest()[:16]


def described(setting: Any) -> str:
    """Return what JSON has no words for; of an image, a digest of all its numbers."""
    numbers = setting.cpu().numpy() if isinstance(setting, Tensor) else setting
    if hasattr(numbers, "tobytes"):
        return hashlib.sha256(numbers.tobytes()).hexdigest()
    return repr(setting)


def take_in(found: Any, name: str, tensor: Tensor) -> None:
    """Add a tensor to a digest."""
    found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    found.update(tensor.cpu().flatten().contiguous().view(torch.uint8).numpy())


def descriptions(pipeline: DiffusionPipeline) -> Iterator[tuple[str, str, str]]:
    """Yield the class and the configuration of every part."""
    for name, part in pipeline.components.items():
        config = getattr(part, "config", getattr(part, "init_kwargs", None))
        yield name, type(part).__name__, repr(config)


def write(path: Path, encoded: Encoded) -> None:
    """Write tensors, and beside them in the file's header all that is no tensor."""
    plain, tensors = parts_of(encoded.scheduler)
    condition = {CONDITION + name: once(x) for name, x in named(encoded.condition).items()}
    schedule = {SCHEDULER + name: x.contiguous() for name, x in tensors.items()}
    header = {"shape": json.dumps(encoded.latents_shape), "scheduler": json.dumps(plain)}
    with writing(path) as draft:
        save_file({**condition, **schedule}, draft, header)


def read(path: Path, scheduler: SchedulerMixin, num_prompts: int) -> Encoded | None:
    """Return what a file holds, with a scheduler like this one; None if missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shape, plain = (json.loads(header[name]) for name in ("shape", "scheduler"))
    except (OSError, SafetensorError):
        return None
    condition = {n: x.expand(num_prompts, *x.shape[1:]) for n, x in below(CONDITION, tensors)}
    prepared = unmoved(scheduler)
    vars(prepared).update({**plain, **dict(below(SCHEDULER, tensors))})
    return Encoded(condition, tuple(shape), prepared)


def once(x: Tensor) -> Tensor:
    """Return a single row of those that are one in memory."""
    return (x[0].unsqueeze(0) if x.stride(0) == 0 else x).contiguous()


def below(prefix: str, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors whose names begin so, without that."""
    return ((n.removeprefix(prefix), x) for n, x in tensors.items() if n.startswith(prefix))


def parts_of(scheduler: SchedulerMixin) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a scheduler holds, plain values and tensors: how its timesteps are set.

    Objects and arrays are made by its class, from the configuration.
    """
    held = {name: value for name, value in vars(scheduler).items() if name != "_internal_dict"}
    tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    plain = {n: v for n, v in held.items() if isinstance(v, str | bool | int | float | type(None))}
    return plain, tensors
