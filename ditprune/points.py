"""Calibration samples from the model's own sampling: points of its trajectories."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditprune.calibration import evaluating
from ditprune.distributed import share_of_rank, sum_over_ranks
from ditprune.families import Batch, Condition, Family, map_condition
from ditprune.families.base import condition_like
from ditprune.point_cache import digest, reach_once
from ditprune.prompts import Encoded
from ditprune.sampling import denoising, draw_noise, sample_generator


@dataclass(frozen=True)
class TrajectoryPoints:
    """What the model sees at single steps of its own guided sampling.

    Sample i of n has noise of its own, prompt i modulo their number, and a step from the i-th of n
    equal parts of the schedule, the noisy end first. It is a function of the seed and i alone.
    """

    model: nn.Module
    family: Family
    encoded: Encoded
    guidance_scale: float
    """Of classifier-free guidance; models without a null branch do not use it."""
    num_samples: int = 128
    seed: int = 0
    folder: Path | None = None
    """Where points are kept as they are reached, so that an interrupted run goes on; None is
    nowhere."""

    @torch.no_grad()
    def reach(self) -> list[Batch]:
        """Run every sample's trajectory up to its step, and return batches of one, on the CPU.

        That takes at most num_inference_steps predictions a sample, on average half as many. In a
        process group each rank does its share, and all get the same.
        """
        shape = (self.num_samples, *self.encoded.latents_shape)
        weight = next(self.model.parameters())
        latents = torch.zeros(shape, dtype=torch.float64, device=weight.device)
        kept = self.kept()
        with evaluating(self.model):
            for index in share_of_rank(range(self.num_samples)):
                latents[index] = self._reached(index, kept)[0]
        reached = sum_over_ranks(latents).to(weight.dtype).cpu()
        return [self.batch(index, reached[[index]]) for index in range(self.num_samples)]

    def kept(self) -> Path | None:
        """Return the folder of these points among those of others."""
        if self.folder is None:
            return None
        settings = [self.guidance_scale, self.num_samples, self.seed]
        name = digest(self.model, self.family, self.encoded, settings)
        return self.folder / f"points-{name}"

    def _reached(self, index: int, kept: Path | None) -> Float[Tensor, "1 ..."]:
        def reach() -> Float[Tensor, "1 ..."]:
            return self.point(index).latents

        return reach_once(kept / f"{index}.safetensors", reach) if kept else reach()

    def point(self, index: int) -> Batch:
        """Run one trajectory up to its step, on the model's device."""
        weight = next(self.model.parameters())
        generator = sample_generator(self.seed, index, "calibration")
        noise = draw_noise(self.encoded.latents_shape, [generator]).to(weight)
        condition = condition_like(self.condition(index), weight)
        steps = denoising(
            self.model,
            self.family,
            self.encoded.scheduler,
            noise,
            condition,
            [generator],
            self.guidance_scale,
        )
        return next(islice(steps, self.step(index), None))

    def step(self, index: int) -> int:
        """Return the number of a sample's step."""
        generator = sample_generator(self.seed, index, "calibration step")
        level = (index + torch.rand((), generator=generator).item()) / self.num_samples
        num_steps = len(self.encoded.scheduler.timesteps)
        return min(int(level * num_steps), num_steps - 1)

    def condition(self, index: int) -> Condition:
        """Return what a sample hears, of both branches."""
        return map_condition(lambda x: x[[index % len(x)]], self.encoded.condition)

    def batch(self, index: int, latents: Float[Tensor, "1 ..."]) -> Batch:
        """Return a sample whose latents are known."""
        timestep = self.encoded.scheduler.timesteps[[self.step(index)]]
        level = timestep / self.encoded.scheduler.config.num_train_timesteps
        return Batch(latents, timestep, self.condition(index), level)
