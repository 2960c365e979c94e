"""Captioned images of any data set: from the hub, or a folder with a table of captions."""

from functools import partial
from typing import Any

from PIL import Image

from ditprune.datamodules.captioned import CaptionedImages, Entry
from ditprune.datamodules.records import load_data_set


class CaptionedDataSet(CaptionedImages):
    """Images with their captions, as `datasets` loads them.

    A folder of yours is one if a metadata.csv or metadata.jsonl in it has a row for each image: its
    `file_name` and its `caption`.
    """

    def __init__(
        self,
        source: str,
        num_images: int,
        split: str = "train",
        prompt_column: str = "caption",
        image_column: str = "image",
        category_column: str | None = None,
        id_column: str | None = None,
        side: int | None = None,
        num_calibration_samples: int = 128,
        seed: int = 0,
    ) -> None:
        """Choose images.

        Args:
            source: hub id, or folder.
            num_images: to draw for, and to compare with.
            split: of the data set.
            prompt_column: the column of captions; of several for an image, the first counts.
            image_column: the column of images.
            category_column: the column of categories, which Frechet distances are told for too.
            id_column: the column of names; None takes the numbers of the rows.
            side: of the squares that images are cut and scaled to, in pixels; None leaves them as
                they are.
            num_calibration_samples: points of sampling trajectories to calibrate with.
            seed: of the choice, and of all calibration samples.

        Raises:
            ValueError: if it cannot be loaded, or lacks a column.
        """
        columns = {
            "prompt_column": prompt_column,
            "image_column": image_column,
            "category_column": category_column,
            "id_column": id_column,
        }
        data = load_data_set(source, split, columns)
        numbers = [f"{row:08d}" for row in range(len(data))]
        names = data[id_column] if id_column else numbers
        kinds = category_names(data, category_column) if category_column else [""] * len(data)
        texts = list(data[prompt_column])
        silent = [row for row, text in enumerate(texts) if not text]
        if silent:
            raise ValueError(
                f"{len(silent)} of {len(texts)} images of {source!r} have no caption in "
                f"{prompt_column!r}, that of row {silent[0]} for one: give them some, or leave "
                "them out"
            )
        entries = [
            Entry(str(name), first_of(text), partial(image_at, data, row, image_column), kind)
            for row, (name, text, kind) in enumerate(zip(names, texts, kinds, strict=True))
        ]
        super().__init__(
            f"{source} {split}", entries, num_images, side, num_calibration_samples, seed
        )


def category_names(data: Any, column: str) -> list[str]:
    """Return the categories of all rows, by their names where they are numbers."""
    feature = data.features[column]
    name = getattr(feature, "int2str", str)
    return [str(name(value)) for value in data[column]]


def first_of(text: str | list[str]) -> str:
    """Return a caption, or the first of several."""
    return text if isinstance(text, str) else text[0]


def image_at(data: Any, row: int, column: str) -> Image.Image:
    """Return the image of a row.

    Raises:
        OSError: if there is none.
    """
    found = data[row][column]
    if not isinstance(found, Image.Image):
        raise OSError(f"column {column!r} holds {type(found).__name__} and no image")
    return found
