"""Images from a denoiser and a scheduler, a function of each sample's own seed."""

import hashlib
import inspect
from collections.abc import Sequence
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
    num_inference_steps: int,
    guidance_scale: float,
) -> Float[Tensor, "b ..."]:
    """Denoise `noise` with classifier-free guidance (Ho & Salimans 2022, Eq. 6).

    The guided branches are combined first and the scheduler steps on the b samples, each with
    its own generator, so that stochastic schedulers do not depend on the batch either.
    """
    scheduler = scheduler.from_config(scheduler.config)
    scheduler.set_timesteps(num_inference_steps, device=noise.device)
    extra = step_arguments(scheduler, generators)
    latents = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        batch = batch_at(scheduler, latents, timestep, condition)
        prediction = guide(family.predict(model, batch), guidance_scale)
        prediction = prediction[:, : latents.shape[1]]  # a learned variance is not used
        latents = scheduler.step(prediction, timestep, latents, **extra).prev_sample
    return latents


def batch_at(
    scheduler: SchedulerMixin,
    latents: Float[Tensor, "b ..."],
    timestep: Tensor,
    condition: Condition,
) -> Batch:
    """Return what the model sees at one timestep of the schedule."""
    timesteps = timestep.expand(len(latents))
    return Batch(
        latents=scheduler.scale_model_input(latents, timestep),
        timestep=timesteps,
        condition=condition,
        noise_level=timesteps / scheduler.config.num_train_timesteps,
    )


def guide(branches: Float[Tensor, "branches b ..."], scale: float) -> Float[Tensor, "b ..."]:
    """Combine the guidance branches: unconditional + scale * (conditional - unconditional)."""
    if len(branches) == 1:
        return branches[0]
    conditional, unconditional = branches
    return unconditional + scale * (conditional - unconditional)


def step_arguments(
    scheduler: SchedulerMixin, generators: Sequence[torch.Generator]
) -> dict[str, Any]:
    """Return the generators for those schedulers whose step draws random numbers."""
    accepts = inspect.signature(scheduler.step).parameters
    return {"generator": list(generators)} if "generator" in accepts else {}
