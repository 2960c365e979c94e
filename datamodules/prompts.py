"""Prompts: to calibrate with, to draw images for, and images to compare those with."""

from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from ditprune.datamodules.prompted import PromptedDataModule
from ditprune.datamodules.records import load_data_set


class PromptDataModule(PromptedDataModule):
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
        super().__init__(num_calibration_samples, reference_images, seed)
        found = prompts if isinstance(prompts, list) else read_prompts(prompts, split, column)
        if not found:
            raise ValueError("there is no prompt: prompts is an empty list")
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
        self.prompts = [found[i] for i in order[:num_prompts]]

    def calibration_conditions(self) -> list[str]:
        """Return the first prompts."""
        return self.prompts[: self.num_calibration_samples]

    def evaluation_conditions(self, num_samples: int) -> Int[Tensor, " n"]:
        """Return the indices of the prompts to draw for, from the last one backwards."""
        count = len(self.prompts)
        return count - 1 - torch.arange(num_samples) % count


def read_prompts(source: str, split: str, column: str) -> list[str]:
    """Return the prompts of a text file, of a file of records or of a data set.

    Raises:
        ValueError: if they cannot be read, or there are none.
    """
    if Path(source).suffix == ".txt":
        prompts = read_lines(Path(source))
    else:
        data = load_data_set(source, split, {"column": column})
        prompts = [str(prompt) for prompt in data[column]]
    if not prompts:
        raise ValueError(f"there is no prompt in {source}")
    return prompts


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it so") from error
    except OSError as error:
        raise ValueError(f"cannot read the prompts in {path}: {error.strerror}") from error
    return [line.strip() for line in lines if line.strip()]
