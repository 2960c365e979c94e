"""MJHQ-30K: Midjourney's pictures of ten categories (Li et al. 2024, arXiv 2402.17245)."""

from pathlib import Path

from ditprune.datamodules.captioned import CaptionedImages, Entry
from ditprune.datamodules.records import read_records

IMAGES = "mjhq30k_imgs"


class MJHQ30K(CaptionedImages):
    """30,000 pictures with their prompts; Frechet distances are told for each category too."""

    def __init__(
        self,
        folder: str,
        num_images: int = 30_000,
        category: str | None = None,
        side: int | None = None,
        num_calibration_samples: int = 128,
        seed: int = 0,
    ) -> None:
        """Choose pictures.

        Args:
            folder: holds meta_data.json, and mjhq30k_imgs/ or what is in it, as
                https://huggingface.co/datasets/playgroundai/MJHQ-30K gives them.
            num_images: to draw for, and to compare with; published are 1,000, 5,000 and 30,000.
            category: animals, art, fashion, food, indoor, landscape, logo, people, plants or
                vehicles; None takes all.
            side: of the squares that pictures are scaled to, in pixels; None leaves their 1024.
            num_calibration_samples: points of sampling trajectories to calibrate with.
            seed: of the choice, and of all calibration samples.

        Raises:
            ValueError: if files are missing, or none of MJHQ-30K's; if there is no such category.
        """
        entries = mjhq_entries(Path(folder))
        if category is not None:
            entries = in_category(entries, category)
        name = f"MJHQ-30K{f' {category}' if category else ''}"
        super().__init__(name, entries, num_images, side, num_calibration_samples, seed)


def mjhq_entries(folder: Path) -> list[Entry]:
    """Return every picture."""
    content = read_records(folder / "meta_data.json")
    images = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    try:
        return [
            Entry(name, each["prompt"], images / each["category"] / f"{name}.jpg", each["category"])
            for name, each in content.items()
        ]
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"{folder}/meta_data.json is not MJHQ-30K's: {error!r}. It must hold a category and a "
            "prompt for each id"
        ) from error


def in_category(entries: list[Entry], category: str) -> list[Entry]:
    """Return the pictures of a category.

    Raises:
        ValueError: if there are none.
    """
    found = [entry for entry in entries if entry.category == category]
    if not found:
        names = sorted({entry.category for entry in entries})
        raise ValueError(f"there is no category {category!r}; there are {', '.join(names)}")
    return found
