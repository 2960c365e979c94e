"""Calibration samples: noised images at timesteps that cover the whole schedule evenly."""

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
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
        images: Float[Tensor, "images c h w"],
        conditions: Condition,
        scheduler: SchedulerMixin,
        num_samples: int = 128,
        seed: int = 0,
    ) -> None:
        """Choose what to noise.

        Args:
            images: clean images in [-1, 1], or latents of the model's own scale.
            conditions: the class of each [images], or named tensors [images, ...]: embeddings
                of its prompt, for instance.
            scheduler: whose `add_noise` to use: the model's own.
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
        num_timesteps = self.scheduler.config.num_train_timesteps
        level = (index + torch.rand(1, generator=generator)) / self.num_samples
        timestep = (level * num_timesteps).long().clamp(max=num_timesteps - 1)
        chosen = self.order[[index % len(self.order)]]
        image = self.images[chosen]
        noise = torch.randn(image.shape, generator=generator)
        return Batch(
            latents=self.scheduler.add_noise(image, noise, timestep),
            timestep=timestep,
            condition=map_condition(lambda values: values[chosen], self.conditions),
            noise_level=timestep / num_timesteps,
        )


def collate(samples: list[Batch]) -> Batch:
    """Join batches of one."""
    latents, timesteps, conditions, levels = zip(*samples, strict=True)
    return Batch(
        torch.cat(latents), torch.cat(timesteps), join_conditions(conditions), torch.cat(levels)
    )
