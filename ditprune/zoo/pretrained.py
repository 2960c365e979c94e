"""A denoiser with its scheduler and its decoder, from the zoo, a folder or the hub."""

from pathlib import Path
from typing import Any, NamedTuple

import diffusers
from diffusers import AutoencoderKL, AutoModel, DDPMScheduler, ModelMixin, SchedulerMixin
from diffusers.utils import is_accelerate_available
from safetensors import SafetensorError

ZOO = Path(__file__).parent / "models"


class Pretrained(NamedTuple):
    """What it takes to draw images."""

    transformer: ModelMixin
    scheduler: SchedulerMixin
    vae: AutoencoderKL | None
    """None where the transformer works on pixels."""


def load_pretrained(source: str) -> Pretrained:
    """Load a model in diffusers' folder layout: `digits-dit`, a local folder or a hub id.

    Raises:
        ValueError: if the folder, one of its files or the hub repository cannot be read.
    """
    folder = locate(source)
    try:
        return Pretrained(
            transformer=load_part(AutoModel, folder, "transformer"),
            scheduler=load_scheduler(folder),
            vae=load_vae(folder),
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"cannot load the model {source!r} (looked in {folder}): {error}. Give the name of a "
            f"zoo model ({', '.join(zoo_names())}), a folder that diffusers' save_pretrained "
            "wrote, or a hub id that this machine can reach."
        ) from error


def zoo_names() -> list[str]:
    """Return the names of the models that ship with the package."""
    return sorted(path.name for path in ZOO.iterdir() if (path / "transformer").is_dir())


def locate(source: str) -> str:
    """Return the folder of a zoo model; anything else is a folder or a hub id already."""
    shipped = ZOO / source
    return str(shipped) if shipped.is_dir() else source


def load_scheduler(folder: str) -> SchedulerMixin:
    """Load the scheduler under the class its configuration names."""
    config = DDPMScheduler.load_config(folder, subfolder="scheduler")
    scheduler: SchedulerMixin = getattr(diffusers, config["_class_name"]).from_config(config)
    return scheduler


def load_vae(folder: str) -> AutoencoderKL | None:
    """Load the decoder of a latent model; a local folder without one works on pixels."""
    if Path(folder).is_dir() and not (Path(folder) / "vae").is_dir():
        return None
    return load_part(AutoencoderKL, folder, "vae")


def load_part(kind: Any, folder: str, subfolder: str) -> Any:
    """Load one network, piece by piece where accelerate is there to do it."""
    lean = is_accelerate_available()
    return kind.from_pretrained(folder, subfolder=subfolder, low_cpu_mem_usage=lean)
