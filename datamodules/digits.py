"""Handwritten digits: to train on, to calibrate with, and to compare with."""

import lightning as L
import torch
from diffusers import SchedulerMixin
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ditprune.datamodules.calibration import CalibrationDataset, collate
from ditprune.evaluation import to_uint8
from ditprune.families import Batch
from ditprune.zoo.digits import NUM_CLASSES, load_split
from ditprune.zoo.pretrained import load_scheduler, locate

LabelledLoader = DataLoader[tuple[Tensor, ...]]


class DigitsDataModule(L.LightningDataModule):
    """scikit-learn's 1,797 digits: 1,437 to train, calibrate and compare with, 360 held out."""

    def __init__(
        self,
        batch_size: int = 128,
        num_calibration_samples: int = 128,
        calibration_batch_size: int = 16,
        num_workers: int = 0,
        scheduler: SchedulerMixin | None = None,
        seed: int = 0,
    ) -> None:
        """Choose sizes and the seed.

        Args:
            batch_size: of training, validation and reference images.
            num_calibration_samples: noised images to calibrate with.
            calibration_batch_size: how many of them are loaded at once; it changes no result.
            num_workers: processes that make calibration samples; it changes no result.
            scheduler: the model's noise schedule; None is that of digits-dit.
            seed: of the order of training images and of all calibration samples.
        """
        super().__init__()
        self.batch_size = batch_size
        self.num_calibration_samples = num_calibration_samples
        self.calibration_batch_size = calibration_batch_size
        self.num_workers = num_workers
        self.scheduler = scheduler
        self.seed = seed

    def train_dataloader(self) -> LabelledLoader:
        """Return the training digits, in a new order every epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        dataset = TensorDataset(*load_split().train)
        return DataLoader(
            dataset, self.batch_size, shuffle=True, drop_last=True, generator=generator
        )

    def val_dataloader(self) -> LabelledLoader:
        """Return the digits held out."""
        return DataLoader(TensorDataset(*load_split().held_out), self.batch_size)

    def calibration_dataloader(self, seed: int | None = None) -> DataLoader[Batch]:
        """Return noised training digits at timesteps that cover the schedule.

        Another seed than the datamodule's draws other samples.
        """
        images, labels = load_split().train
        scheduler = self.scheduler or load_scheduler(locate("digits-dit"))
        dataset = CalibrationDataset(
            images,
            labels,
            scheduler,
            self.num_calibration_samples,
            self.seed if seed is None else seed,
        )
        return DataLoader(
            dataset,
            self.calibration_batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
        )

    def evaluation_conditions(self, num_samples: int) -> Int[Tensor, " n"]:
        """Return the classes to draw: each as often as any other."""
        return torch.arange(num_samples) % NUM_CLASSES

    def reference_dataloader(self) -> DataLoader[UInt8[Tensor, "b 1 8 8"]]:
        """Return the training digits as 8-bit images: what the model learned to draw."""
        images = to_uint8(load_split().train.images)
        return DataLoader(images, self.batch_size)  # type: ignore[arg-type]
