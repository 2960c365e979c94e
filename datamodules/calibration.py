"""Calibration samples: noised images at timesteps that cover the whole schedule evenly."""

import copy

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from ditprune.families import Batch, Condition, map_condition
from ditprune.families.base import join_conditions
from ditprune.sampling import sample_generator


class CalibrationDataset(Dataset[Batch]):
    """Images, each noised to a timestep of its own part of the schedule.

    Sample i of n is one of the images, drawn without replacement while they last, at a random
    timestep in the i-th of n equal parts. It is a function of the seed and i alone: neither
    batch size nor the number of workers or processes changes it.
    """

    def __init__(
        self,
        images: Float[Tensor, "images ..."],
        conditions: Condition,
        scheduler: SchedulerMixin,
        num_samples: int = 128,
        seed: int = 0,
    ) -> None:
        """Choose what to noise.

        Args:
            images: clean images in [-1, 1], or latents in the model's own layout and scale.
            conditions: the class of each [images], or named tensors [images, ...]: embeddings
                of its prompt, for instance.
            scheduler: whose noise to use: the model's own. Of flow matching, the timesteps that
                it is set to are those there are: prepared for sampling, as `Encoded.scheduler`
                is, its few; else all.
            num_samples: how many samples to make; the paper's 128 are enough (Table 10).
            seed: of images, timesteps and noise.
        """
        for values in [conditions] if isinstance(conditions, Tensor) else conditions.values():
            if len(images) != len(values):
                raise ValueError(f"{len(images)} images have {len(values)} conditions")
        if num_samples > 0 and len(images) == 0:
            raise ValueError("there are no images to calibrate with")
        self.images = images
        self.conditions = conditions
        self.scheduler = scheduler
        self.timesteps = ascending_timesteps(scheduler)
        self.num_samples = num_samples
        self.seed = seed
        generator = sample_generator(seed, 0, "calibration order")
        self.order = torch.randperm(len(images), generator=generator)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.num_samples

    def __getitem__(self, index: int) -> Batch:
        """Return one sample, as a batch of one."""
        generator = sample_generator(self.seed, index, "calibration")
        level = (index + torch.rand(1, generator=generator)) / self.num_samples
        timestep = at_level(self.timesteps, level)
        chosen = self.order[[index % len(self.order)]]
        image = self.images[chosen]
        noise = torch.randn(image.shape, generator=generator)
        return Batch(
            latents=add_noise(self.scheduler, image, noise, timestep),
            timestep=timestep,
            condition=map_condition(lambda values: values[chosen], self.conditions),
            noise_level=timestep / self.scheduler.config.num_train_timesteps,
        )


def ascending_timesteps(scheduler: SchedulerMixin) -> Shaped[Tensor, " timesteps"]:
    """Return those to which images can be noised, the cleanest first."""
    if is_flow_matching(scheduler):
        return scheduler.timesteps.flip(0)
    return torch.arange(scheduler.config.num_train_timesteps)


def at_level(values: Shaped[Tensor, " n"], level: Float[Tensor, " 1"]) -> Shaped[Tensor, " 1"]:
    """Return the value in the part of the list that a level in [0, 1] is in."""
    return values[(level * len(values)).long().clamp(max=len(values) - 1)]


def add_noise(
    scheduler: SchedulerMixin,
    image: Float[Tensor, "1 ..."],
    noise: Float[Tensor, "1 ..."],
    timestep: Shaped[Tensor, " 1"],
) -> Float[Tensor, "1 ..."]:
    """Mix an image with noise as the scheduler does."""
    if not is_flow_matching(scheduler):
        return scheduler.add_noise(image, noise, timestep)
    scheduler = copy.copy(scheduler)
    # Where a pipeline said that it begins, all would be noised to that step.
    scheduler._begin_index = None
    return scheduler.scale_noise(image, timestep, noise)


def is_flow_matching(scheduler: SchedulerMixin) -> bool:
    """Tell by what diffusers calls the mixing there."""
    return hasattr(scheduler, "scale_noise")


def collate(samples: list[Batch]) -> Batch:
    """Join batches of one."""
    latents, timesteps, conditions, levels = zip(*samples, strict=True)
    return Batch(
        torch.cat(latents), torch.cat(timesteps), join_conditions(conditions), torch.cat(levels)
    )
