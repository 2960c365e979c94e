"""Calibration by the model's own sampling, for datamodules that know what it is asked to draw."""

import abc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from jaxtyping import UInt8
from torch import Tensor

from ditprune.families import Batch
from ditprune.image_files import read_images
from ditprune.statistics_file import holds_images, holds_statistics


@runtime_checkable
class TrajectorySource(Protocol):
    """A LightningModule that samples: those of `ditprune.lit`, for instance."""

    def trajectory_points(
        self, conditions: Sequence[Any], num_samples: int, seed: int
    ) -> list[Batch]:
        """Return calibration samples for prompts or classes, the same on every rank."""
        ...


class TrajectoryDataModule(L.LightningDataModule, abc.ABC):
    """Calibrates with points of the model's sampling, and may have images to compare with."""

    def __init__(
        self, num_calibration_samples: int, reference_images: str | None, seed: int
    ) -> None:
        """Hold what members have in common."""
        super().__init__()
        self.num_calibration_samples = num_calibration_samples
        self.reference_images = reference_images
        self.seed = seed
        self._drawn: dict[int, list[Batch]] = {}

    @abc.abstractmethod
    def calibration_conditions(self) -> Sequence[Any]:
        """Return what to draw for calibration: prompts, or classes."""

    def calibration_dataloader(self, seed: int | None = None) -> list[Batch]:
        """Return points of the model's sampling trajectories, in batches of one.

        They are drawn when they are asked for first, from the model as it is then, and kept: a
        pruned model is calibrated with the dense one's. Another seed than the datamodule's draws
        other samples for the same conditions.
        """
        seed = self.seed if seed is None else seed
        if seed not in self._drawn:
            self._drawn[seed] = self._source().trajectory_points(
                self.calibration_conditions(), self.num_calibration_samples, seed
            )
        return self._drawn[seed]

    def reference_dataloader(self) -> Iterator[UInt8[Tensor, "n c h w"]]:
        """Return the real images, in batches of one size each.

        Raises:
            ValueError: if there are none.
        """
        if self.reference_images is None:
            raise ValueError(
                "there are no reference_images to compare with: give a folder of some, or "
                "EvaluationCallback no metrics, so that the pruned model's images are compared "
                "with the dense one's alone"
            )
        path = Path(self.reference_images)
        return read_images(path) if holds_images(path) else iter(())

    def reference_statistics(self) -> Path | None:
        """Return the file of reference images if it holds their mean and covariance too."""
        path = Path(self.reference_images or "")
        return path if holds_statistics(path) else None

    def _source(self) -> TrajectorySource:
        module = self.trainer.lightning_module if self.trainer else None
        if not isinstance(module, TrajectorySource):
            raise ValueError(
                "calibration samples come from a LightningModule with trajectory_points("
                "conditions, num_samples, seed), as those of ditprune.lit are; "
                f"{type(module).__name__} has none"
            )
        return module
