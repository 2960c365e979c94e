"""MS-COCO's captioned photographs (Lin et al. 2014, arXiv 1405.0312)."""

from pathlib import Path

from ditprune.datamodules.captioned import CaptionedImages, Entry
from ditprune.datamodules.records import read_records


class COCO(CaptionedImages):
    """Photographs of everyday scenes, each with the first of its captions.

    Published numbers are of unlike choices, sizes and cuts, so that few of them compare.
    """

    def __init__(
        self,
        folder: str,
        split: str = "val2014",
        num_images: int = 5000,
        side: int | None = 256,
        num_calibration_samples: int = 128,
        seed: int = 0,
    ) -> None:
        """Choose photographs.

        Args:
            folder: holds annotations/captions_<split>.json and <split>/, as
                https://cocodataset.org gives them.
            split: val2014 (40,504 photographs) or val2017 (5,000), for instance.
            num_images: to draw for, and to compare with; published are 1,000, 5,000 and 30,000.
            side: of the squares that photographs are cut and scaled to, in pixels; None leaves
                them as they are.
            num_calibration_samples: points of sampling trajectories to calibrate with.
            seed: of the choice, and of all calibration samples.

        Raises:
            ValueError: if files are missing, or none of COCO's.
        """
        entries = coco_entries(Path(folder), split)
        super().__init__(f"COCO {split}", entries, num_images, side, num_calibration_samples, seed)


def coco_entries(folder: Path, split: str) -> list[Entry]:
    """Return every photograph with its caption of the lowest number."""
    content = read_records(folder / "annotations" / f"captions_{split}.json")
    try:
        captions = sorted(content["annotations"], key=lambda each: each["id"], reverse=True)
        first = {each["image_id"]: each["caption"].strip() for each in captions}
        return [
            Entry(f"{each['id']:012d}", first[each["id"]], folder / split / each["file_name"])
            for each in content["images"]
            if each["id"] in first
        ]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"captions_{split}.json is none of COCO's: it lacks {error}. It must hold `images` "
            "with id and file_name, and `annotations` with id, image_id and caption"
        ) from error
