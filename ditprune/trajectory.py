"""Guided sampling trajectories from fixed noise: the paths along which importance is measured."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from jaxtyping import Float
from torch import Tensor, nn

from ditprune.families import Batch, Condition, Family
from ditprune.families.base import join_conditions
from ditprune.sampling import batch_at, draw_noise, sample_generator

CHUNK_SIZE = 16
"""Trajectories followed at once, whatever the user's batch: it decides which kernels run."""


@dataclass(frozen=True)
class Trajectories:
    """Samplings for the conditions of calibration samples, from noise of their own.

    Stochastic and multi-step schedulers are replaced by DDIM, or by Euler's method of flow
    matching: only their steps are functions of the present state alone.
    """

    model: nn.Module
    family: Family
    scheduler: SchedulerMixin
    """The model's own."""
    samples: Sequence[Batch]
    """Of one each; begun anew where there are fewer of them than trajectories."""
    guidance_scale: float
    num_trajectories: int
    num_steps: int
    seed: int

    def chunks(self) -> list[range]:
        """Return the numbers of those that are followed together."""
        count = self.num_trajectories
        return [range(i, min(i + CHUNK_SIZE, count)) for i in range(0, count, CHUNK_SIZE)]

    def step(self, ids: range) -> "DenoisingStep":
        """Return a step of some of them."""
        chosen = [self.samples[i % len(self.samples)] for i in ids]
        condition = join_conditions([sample.condition for sample in chosen])
        plain = single_step(self.scheduler, self.num_steps)
        return DenoisingStep(self.model, self.family, plain, condition, self.guidance_scale)

    def noise(self, ids: range, stream: str = "start") -> Float[Tensor, "b ..."]:
        """Draw where some of them start, or other standard normal numbers of their shape."""
        latents = self.samples[0].latents
        generators = [sample_generator(self.seed, i, f"importance {stream}") for i in ids]
        return draw_noise(latents.shape[1:], generators).to(latents)

    def images(self) -> Float[Tensor, "trajectories ..."]:
        """Return the latents at the ends of all, as the model is now."""
        return torch.cat([self.step(ids).last(self.noise(ids)) for ids in self.chunks()])


@dataclass(frozen=True)
class DenoisingStep:
    """One guided step of sampling, as a function of the latents."""

    model: nn.Module
    family: Family
    scheduler: SchedulerMixin
    condition: Condition
    guidance_scale: float

    def __call__(self, latents: Float[Tensor, "b ..."], index: int) -> Float[Tensor, "b ..."]:
        """Return the latents after the index-th step."""
        timestep = self.scheduler.timesteps[index]
        # Some schedulers count their own steps; every call tells them where they are.
        self.scheduler._step_index = index
        batch = batch_at(self.scheduler, latents, timestep, self.condition)
        branches = self.family.predict(self.model, batch)
        progress = (index + 1) / len(self.scheduler.timesteps)
        prediction = self.family.guide(branches, self.guidance_scale, progress)
        stepped: Tensor = self.scheduler.step(
            prediction[:, : latents.shape[1]], timestep, latents
        ).prev_sample
        return stepped

    @torch.no_grad()
    def states(self, start: Float[Tensor, "b ..."]) -> list[Float[Tensor, "b ..."]]:
        """Return the latents before every step."""
        states = [start]
        for index in range(len(self.scheduler.timesteps) - 1):
            states.append(self(states[-1], index))
        return states

    @torch.no_grad()
    def last(self, start: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the latents after all steps."""
        for index in range(len(self.scheduler.timesteps)):
            start = self(start, index)
        return start


def single_step(scheduler: SchedulerMixin, num_steps: int) -> SchedulerMixin:
    """Return a scheduler of the same noise whose steps are functions of the present state."""
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    if flow and getattr(scheduler, "num_inference_steps", None):
        return resampled(scheduler, num_steps)
    kind = FlowMatchEulerDiscreteScheduler if flow else DDIMScheduler
    plain = kind.from_config(scheduler.config)
    plain.set_timesteps(num_steps)
    return plain


def resampled(scheduler: SchedulerMixin, num_steps: int) -> SchedulerMixin:
    """Return a flow-matching scheduler along the same path of noise, in another number of steps.

    Pipelines set that path by the size of the image, of which the configuration knows nothing.
    """
    plain = copy.deepcopy(scheduler)
    path = scheduler.sigmas.cpu().numpy()
    places = np.linspace(0, len(path) - 1, num_steps + 1)
    plain.sigmas = torch.from_numpy(np.interp(places, np.arange(len(path)), path)).float()
    plain.timesteps = plain.sigmas[:-1] * plain.config.num_train_timesteps
    return plain
