"""Class labels: to calibrate with, to draw images for, and images to compare those with."""

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from ditprune.datamodules.trajectories import TrajectoryDataModule


class LabelDataModule(TrajectoryDataModule):
    """The classes of a class-conditional model, of whose images none are needed to calibrate.

    They come in an order that the seed decides, each once before any comes again.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        num_calibration_samples: int = 128,
        reference_images: str | None = None,
        seed: int = 0,
    ) -> None:
        """Choose classes.

        Args:
            num_classes: of the model; ImageNet's are 1,000.
            num_calibration_samples: points of sampling trajectories to calibrate with.
            reference_images: folder of real images to compare with; or an npz of ADM's evaluator,
                to whose statistics Frechet distances are measured; None where no metric compares.
            seed: of the order of classes, and of all calibration samples.

        Raises:
            ValueError: if there is no class.
        """
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1; got {num_classes}")
        super().__init__(num_calibration_samples, reference_images, seed)
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randperm(num_classes, generator=generator)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return one label: what is validated are images, which EvaluationCallback draws."""
        return DataLoader(self.labels[:1])  # type: ignore[arg-type]

    def calibration_conditions(self) -> list[int]:
        """Return as many labels as there are samples, if there are so many classes."""
        return self.labels[: self.num_calibration_samples].tolist()

    def evaluation_conditions(self, num_samples: int) -> Int[Tensor, " n"]:
        """Return the classes to draw: each as often as any other, or once more."""
        return self.labels[torch.arange(num_samples) % len(self.labels)]
