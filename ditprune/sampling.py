"""Images from a denoiser and a scheduler, a function of each sample's own seed."""

import copy
import hashlib
import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Tensor, nn

from ditprune.families.base import Batch, Condition, Family


def sample_generator(seed: int, sample_id: int, stream: str = "noise") -> torch.Generator:
    """Return the random numbers of one sample: the same whatever is sampled beside it."""
    digest = hashlib.blake2b(f"{seed}/{sample_id}/{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def draw_noise(
    shape: Sequence[int], generators: Sequence[torch.Generator]
) -> Float[Tensor, "b ..."]:
    """Draw standard normal noise, one row from each generator, in float32 on the CPU."""
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators])


@torch.no_grad()
def sample_latents(
    model: nn.Module,
    family: Family,
    scheduler: SchedulerMixin,
    noise: Float[Tensor, "b ..."],
    condition: Condition,
    generators: Sequence[torch.Generator],
    *,
    num_inference_steps: int | None,
    guidance_scale: float,
) -> Float[Tensor, "b ..."]:
    """Denoise `noise` with classifier-free guidance (Ho & Salimans 2022, Eq. 6).

    None steps are those that the scheduler's timesteps are set to already.
    """
    if num_inference_steps is not None:
        scheduler = scheduler.from_config(scheduler.config)
        scheduler.set_timesteps(num_inference_steps, device=noise.device)
    steps = denoising(model, family, scheduler, noise, condition, generators, guidance_scale)
    return deque(steps, maxlen=1).pop().latents


@torch.no_grad()
def denoising(
    model: nn.Module,
    family: Family,
    scheduler: SchedulerMixin,
    noise: Float[Tensor, "b ..."],
    condition: Condition,
    generators: Sequence[torch.Generator],
    guidance_scale: float,
) -> Iterator[Batch]:
    """Yield what the model sees before every step of the schedule, and at last what is left.

    A step is taken when the next batch is asked for. The guided branches are combined first and
    the scheduler, of which a copy is used, steps on the b samples, each with its own generator, so
    that stochastic schedulers do not depend on the batch either.
    """
    scheduler = copy.deepcopy(scheduler)
    extra = step_arguments(scheduler, generators)
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)  # flow matching has none
    for index, timestep in enumerate(scheduler.timesteps):
        batch = batch_at(scheduler, latents, timestep, condition)
        yield batch
        progress = (index + 1) / len(scheduler.timesteps)
        prediction = family.guide(family.predict(model, batch), guidance_scale, progress)
        prediction = prediction[:, : latents.shape[1]]  # a learned variance is not used
        latents = scheduler.step(prediction, timestep, latents, **extra).prev_sample
    clean = torch.zeros(len(latents), device=latents.device)
    yield Batch(latents, clean, condition, clean)


def batch_at(
    scheduler: SchedulerMixin,
    latents: Float[Tensor, "b ..."],
    timestep: Tensor,
    condition: Condition,
) -> Batch:
    """Return what the model sees at one timestep of the schedule; flow matching scales nothing."""
    scale = getattr(scheduler, "scale_model_input", lambda latents, timestep: latents)
    timesteps = timestep.to(latents.device).expand(len(latents))
    return Batch(
        latents=scale(latents, timestep),
        timestep=timesteps,
        condition=condition,
        noise_level=timesteps / scheduler.config.num_train_timesteps,
    )


def step_arguments(
    scheduler: SchedulerMixin, generators: Sequence[torch.Generator]
) -> dict[str, Any]:
    """Return the generators for those schedulers whose step draws random numbers."""
    accepts = inspect.signature(scheduler.step).parameters
    return {"generator": list(generators)} if "generator" in accepts else {}
