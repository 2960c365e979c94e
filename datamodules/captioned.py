"""Captioned images: prompts to draw for, and what others drew or photographed for the same."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ditprune.catalogue import Catalogue
from ditprune.datamodules.prompted import PromptedDataModule
from ditprune.image_files import of_one_size


class Entry(NamedTuple):
    """An image of a data set, and what it shows."""

    id: str
    prompt: str
    image: Path | Callable[[], Image.Image]
    category: str = ""


class CaptionedImages(PromptedDataModule):
    """Draws images for the captions of a data set, and compares them with the images of these.

    Which ones is decided by the seed and by their ids alone; `evaluation_ids.txt` of the run
    folder tells. Calibration takes the captions of others, while there are enough.
    """

    def __init__(
        self,
        name: str,
        entries: Sequence[Entry],
        num_images: int,
        side: int | None,
        num_calibration_samples: int,
        seed: int,
    ) -> None:
        """Choose images.

        Args:
            name: of the data set and its part.
            entries: all of it.
            num_images: to draw for, and to compare with.
            side: of the squares that real images are cut and scaled to, in pixels; None leaves
                them as they are.
            num_calibration_samples: points of sampling trajectories to calibrate with.
            seed: of the choice, and of all calibration samples.

        Raises:
            ValueError: if there are fewer images, or one has no file.
        """
        super().__init__(num_calibration_samples, None, seed)
        if not 1 <= num_images <= len(entries):
            raise ValueError(
                f"num_images must be 1 to {len(entries)}, the captioned images of {name}; "
                f"got {num_images}"
            )
        ordered = sorted(entries, key=lambda entry: entry.id)
        order = torch.randperm(len(ordered), generator=torch.Generator().manual_seed(seed))
        shuffled = [ordered[i] for i in order.tolist()]
        self.side = side
        self.entries = shuffled[:num_images]
        self.spare = [*shuffled[num_images:], *reversed(self.entries)]
        self.prompts = [entry.prompt for entry in self.entries]
        self.catalogue = catalogue_of(name, self.entries)
        demand_files(self.entries)

    def calibration_conditions(self) -> list[str]:
        """Return captions of images that are not compared with, while there are enough."""
        return [entry.prompt for entry in self.spare[: self.num_calibration_samples]]

    def evaluation_conditions(self, num_samples: int) -> Int[Tensor, " n"]:
        """Return the places of the first prompts.

        Raises:
            ValueError: if more are asked for than were chosen.
        """
        if num_samples > len(self.prompts):
            raise ValueError(
                f"EvaluationCallback draws num_samples={num_samples} images, and the datamodule "
                f"has chosen num_images={len(self.prompts)} of {self.catalogue.name}: give both "
                "one number"
            )
        return torch.arange(num_samples)

    def reference_dataloader(self) -> Iterator[UInt8[Tensor, "n c h w"]]:
        """Return the images, in batches of one size each."""
        return of_one_size(self._pixels(entry) for entry in self.entries)

    def _pixels(self, entry: Entry) -> UInt8[Tensor, "1 3 h w"]:
        try:
            with opened(entry.image) as image:
                if image.mode[0] in "IF":
                    raise ValueError(f"it has more than 8 bits (mode {image.mode})")
                colours = image.convert("RGB")
        except (OSError, ValueError, UnidentifiedImageError) as error:
            raise ValueError(
                f"cannot read image {entry.id} of {self.catalogue.name}: {error}"
            ) from error
        cut = colours if self.side is None else square(colours, self.side)
        return pil_to_tensor(cut).unsqueeze(0)


def catalogue_of(name: str, entries: Sequence[Entry]) -> Catalogue:
    """Return which entries of a data set there are."""
    categories = [entry.category for entry in entries]
    return Catalogue(name, [entry.id for entry in entries], categories if any(categories) else ())


def opened(image: Path | Callable[[], Image.Image]) -> Image.Image:
    """Return an image, not yet decoded if it is in a file."""
    return Image.open(image) if isinstance(image, Path) else image()


def square(image: Image.Image, side: int) -> Image.Image:
    """Return the central square, scaled with Pillow's bicubic filter, which smooths as it shrinks.

    As most evaluations on COCO do; their papers rarely tell.
    """
    short = min(image.size)
    left, top = ((length - short) // 2 for length in image.size)
    cut = image.crop((left, top, left + short, top + short))
    return cut.resize((side, side), Image.Resampling.BICUBIC)


def demand_files(entries: Sequence[Entry]) -> None:
    """Raise a ValueError if the images of some entries are not there."""
    paths = [entry.image for entry in entries if isinstance(entry.image, Path)]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(paths)} images are not where they belong, {missing[0]} for "
            "one: is the archive unpacked whole, and the folder the right one?"
        )
