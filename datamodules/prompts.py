"""Prompts: to calibrate with, to draw images for, and images to compare those with."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from ditprune.families import Batch
from ditprune.image_files import read_images

FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Of local files, and the names by which `datasets` reads them."""


@runtime_checkable
class TrajectorySource(Protocol):
    """A LightningModule that samples from prompts: `ditprune.lit.PipelineModule`, for instance."""

    def trajectory_points(self, prompts: Sequence[str], num_samples: int, seed: int) -> list[Batch]:
        """Return calibration samples, the same on every rank."""
        ...


class PromptDataModule(L.LightningDataModule):
    """Prompts for a text-to-image pipeline, from a list, a text file or a data set.

    Calibration takes them from the beginning, evaluation from the end: while there are enough,
    they are different ones.
    """

    def __init__(
        self,
        prompts: list[str] | str,
        num_prompts: int | None = None,
        num_calibration_samples: int = 128,
        reference_images: str | None = None,
        split: str = "train",
        column: str = "prompt",
        seed: int = 0,
    ) -> None:
        """Choose prompts.

        Args:
            prompts: the prompts themselves; a text file in UTF-8 (.txt), one on each line; a
                file of records (.json, .jsonl, .csv, .parquet); or a data set, as a folder or
                hub id that `datasets` loads.
            num_prompts: how many to keep, after shuffling; None keeps all.
            num_calibration_samples: points of sampling trajectories to calibrate with.
            reference_images: folder or npz of real images to compare with, as `ditprune score`
                reads them; None where no metric compares with any.
            split: of a data set.
            column: of a data set, which holds the prompts.
            seed: of the order of prompts, and of all calibration samples.

        Raises:
            ValueError: if there is no prompt, or they cannot be read.
        """
        super().__init__()
        found = prompts if isinstance(prompts, list) else read_prompts(prompts, split, column)
        if not found:
            raise ValueError("there is no prompt: prompts is an empty list")
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
        self.prompts = [found[i] for i in order[:num_prompts]]
        self.num_calibration_samples = num_calibration_samples
        self.reference_images = reference_images
        self.seed = seed
        self._drawn: dict[int, list[Batch]] = {}

    def val_dataloader(self) -> DataLoader[str]:
        """Return one prompt: what is validated are images, which EvaluationCallback draws."""
        return DataLoader(self.prompts[:1])  # type: ignore[arg-type]

    def calibration_dataloader(self, seed: int | None = None) -> list[Batch]:
        """Return points of the model's sampling trajectories, in batches of one.

        They are drawn when they are asked for first, from the model as it is then, and kept: a
        pruned model is calibrated with the dense one's. Another seed than the datamodule's draws
        other samples for the same prompts.
        """
        seed = self.seed if seed is None else seed
        if seed not in self._drawn:
            count = self.num_calibration_samples
            prompts = self.prompts[:count]
            self._drawn[seed] = self._source().trajectory_points(prompts, count, seed)
        return self._drawn[seed]

    def evaluation_conditions(self, num_samples: int) -> Int[Tensor, " n"]:
        """Return the indices of the prompts to draw for, from the last one backwards."""
        count = len(self.prompts)
        return count - 1 - torch.arange(num_samples) % count

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
        return read_images(Path(self.reference_images))

    def _source(self) -> TrajectorySource:
        module = self.trainer.lightning_module if self.trainer else None
        if not isinstance(module, TrajectorySource):
            raise ValueError(
                "prompts are sampled by a LightningModule with trajectory_points(prompts, "
                f"num_samples, seed), as ditprune.lit.PipelineModule is; {type(module).__name__} "
                "has none"
            )
        return module


def read_prompts(source: str, split: str, column: str) -> list[str]:
    """Return the prompts of a text file, of a file of records or of a data set.

    Raises:
        ValueError: if they cannot be read, or there are none.
    """
    is_text = Path(source).suffix == ".txt"
    prompts = read_lines(Path(source)) if is_text else read_data_set(source, split, column)
    if not prompts:
        raise ValueError(f"there is no prompt in {source}")
    return prompts


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it so") from error
    except OSError as error:
        raise ValueError(f"cannot read the prompts in {path}: {error.strerror}") from error
    return [line.strip() for line in lines if line.strip()]


def read_data_set(source: str, split: str, column: str) -> list[str]:
    """Return a column of a data set."""
    from datasets import load_dataset  # two seconds, for this source of prompts alone
    from datasets.exceptions import DatasetsError

    kind = FORMATS.get(Path(source).suffix)
    try:
        data = (
            load_dataset(kind, data_files=source, split=split)
            if kind
            else load_dataset(source, split=split)
        )
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise ValueError(
            f"cannot load prompts from {source!r}, split {split!r}: {error}. Give a .txt file "
            "with one a line, a .json, .jsonl, .csv or .parquet file, a folder that `datasets` "
            "loads, or a hub id that this machine can reach"
        ) from error
    if column not in data.column_names:
        raise ValueError(
            f"{source!r} has no column {column!r}; its columns are: {', '.join(data.column_names)}"
        )
    return [str(prompt) for prompt in data[column]]
