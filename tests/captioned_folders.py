"""Small data sets in the layouts of the published ones."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, width: int = 48, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, [height, width, 3], np.uint8)
    return Image.fromarray(pixels)


def coco(folder: Path, count: int = 12, split: str = "val2014") -> str:
    """With two captions for each photograph, of which the later one comes first; one is grey."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, captions = [], []
    for number in range(count):
        name = f"COCO_{split}_{number:012d}.jpg"
        photograph = picture(number, height=40 + 2 * (number % 3))
        (photograph.convert("L") if number == 3 else photograph).save(folder / split / name)
        images.append({"id": number, "file_name": name})
        captions.append({"image_id": number, "id": 100 + number, "caption": "a second caption"})
        captions.append({"image_id": number, "id": number, "caption": f"photograph {number} "})
    content = {"images": images, "annotations": captions}
    (folder / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))
    return str(folder)


CATEGORIES = ("animals", "food", "people")


def mjhq(folder: Path, count: int = 12) -> str:
    """Every third picture is of one category."""
    meta = {}
    for number in range(count):
        category, name = CATEGORIES[number % 3], f"{number:04x}"
        path = folder / "mjhq30k_imgs" / category / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, 64, 64).save(path)
        meta[name] = {"category": category, "prompt": f"picture {number}"}
    (folder / "meta_data.json").write_text(json.dumps(meta))
    return str(folder)


def captioned_folder(folder: Path, count: int = 12) -> str:
    """As people collect images: with a table of captions."""
    folder.mkdir(parents=True)
    rows = ["file_name,caption,kind"]
    for number in range(count):
        picture(number, 32, 32).save(folder / f"{number}.png")
        rows.append(f"{number}.png,image {number},{CATEGORIES[number % 3]}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return str(folder)
