"""Pipelines of diffusers, loaded as they are stored, and the network in them that denoises."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_accelerate_available
from huggingface_hub import model_info
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from safetensors import SafetensorError, safe_open
from torch import nn

from ditprune.families import Conditional
from ditprune.families.base import listing
from ditprune.families.known import family_of, kinds
from ditprune.zoo.pretrained import locate

DENOISERS = ("transformer", "unet")
"""What diffusers calls it."""
STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes that are kept; others are read as float32."""


def load_pipeline(source: str) -> DiffusionPipeline:
    """Load a zoo model, a folder of `save_pretrained` or a hub id, in its transformer's dtype.

    Raises:
        ValueError: if it cannot be read, telling what would help; if it holds nothing to prune.
    """
    source = locate(os.path.expanduser(source))
    if is_path(source) and not Path(source).is_dir():
        raise ValueError(f"cannot load {source!r}: there is no such folder")
    is_local = Path(source).is_dir()
    offline = not (is_local or is_reachable(source))
    try:
        parts = DiffusionPipeline.load_config(source, local_files_only=offline)
        part = denoiser_among(parts, source)
        folder = (
            source if is_local else DiffusionPipeline.download(source, local_files_only=offline)
        )
        return DiffusionPipeline.from_pretrained(
            folder,
            dtype=stored_dtype(Path(folder) / part),
            low_cpu_mem_usage=is_accelerate_available(),
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot load {source!r}: {remedy(source, error)}") from error


def denoiser_among(parts: Any, source: str) -> str:
    """Return the name of the network that denoises among those of a pipeline's parts."""
    found = [name for name in DENOISERS if parts.get(name)]
    if not found:
        names = [name for name in parts if not name.startswith("_")]
        raise ValueError(
            f"{source} has neither a transformer nor a unet, and so nothing to prune; its parts "
            f"are: {', '.join(names) or 'none'}"
        )
    return found[0]


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of the weights in a folder; float32 where safetensors do not tell."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                return STORED.get(file.get_slice(name).get_dtype(), torch.float32)
    return torch.float32


def remedy(source: str, error: BaseException) -> str:
    """Return what would help against an error of loading."""
    if Path(source).is_dir():
        return f"{error}. {what_is_wrong(Path(source))}"
    if any(isinstance(cause, GatedRepoError) for cause in causes(error)):
        return (
            f"it is gated: accept its terms at https://huggingface.co/{source}, then log in by "
            "`hf auth login`"
        )
    return (
        f"there is no such folder, and the hub did not give it: {error}. Check the name and the "
        "network (private and gated models take `hf auth login`), or give a folder"
    )


def what_is_wrong(folder: Path) -> str:
    """Name the files of a folder that are cut short, if there are any."""
    damaged = [str(path) for path in sorted(folder.rglob("*.safetensors")) if is_damaged(path)]
    if damaged:
        return f"These files are damaged or not whole, get them again: {', '.join(damaged)}"
    return "The folder must be one that diffusers' save_pretrained wrote, with all of its files"


def is_damaged(path: Path) -> bool:
    """Tell whether a file's header does not fit its length."""
    try:
        with safe_open(path, framework="pt"):
            return False
    except SafetensorError:
        return True


def is_reachable(source: str) -> bool:
    """Tell whether the hub answers at all: where it does not, downloads try for half a minute."""
    try:
        model_info(source, timeout=10)
    except HfHubHTTPError:
        return True
    except Exception:  # of whichever library the hub's client asks the network with
        return False
    return True


def is_path(source: str) -> bool:
    """Tell whether a source is no hub id, `name` or `owner/name`, or begins with a folder here."""
    is_id = re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", source)
    return not is_id or ("/" in source and Path(source).parent.is_dir())


def causes(error: BaseException | None) -> list[BaseException]:
    """Return an error and what led to it."""
    return [] if error is None else [error, *causes(error.__cause__ or error.__context__)]


def denoiser_of(pipeline: DiffusionPipeline) -> nn.Module:
    """Return the network that denoises.

    Raises:
        ValueError: if the pipeline has none.
    """
    name = denoiser_among(pipeline.components, type(pipeline).__name__)
    model: nn.Module = pipeline.components[name]
    return model


def conditional_family(model: nn.Module) -> Conditional:
    """Return the family of a network with named conditions.

    Raises:
        ValueError: if none names its class, listing those that are known.
    """
    family = family_of(model)
    if not isinstance(family, Conditional):
        known = [name for kind in kinds(Conditional) for name in kind.model_classes]
        raise ValueError(
            f"no family knows {type(model).__name__}; give one (family=..., families.Guess() to "
            f"begin with), or one of these models:\n{listing(known)}"
        )
    return family
