import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ditprune.cli import main
from ditprune.convert import convert
from ditprune.image_files import read_images


@pytest.fixture
def folder(tmp_path):
    """Sixty colour images of 4 x 6 pixels, and a grey one."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 4, 6, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{i:03}.png")
    Image.fromarray(pixels[0, :, :, 0]).save(tmp_path / "images" / "999.png")
    return tmp_path / "images"


def test_an_npz_is_what_adms_evaluator_reads_in_an_order_that_is_told(folder, tmp_path):
    convert(folder, tmp_path / "samples.npz")
    with zipfile.ZipFile(tmp_path / "samples.npz") as archive:
        assert archive.namelist() == ["arr_0.npy"]
        with archive.open("arr_0.npy") as file:
            assert np.lib.format.read_magic(file) == (1, 0)
            header = np.lib.format.read_array_header_1_0(file)
    assert header == ((61, 4, 6, 3), False, np.dtype(np.uint8))
    with np.load(tmp_path / "samples.npz") as file:
        rows = file["arr_0"]
    order = np.load(tmp_path / "samples.order.npy")
    assert sorted(order) == list(range(61))
    assert not np.array_equal(order, np.arange(61))
    for row, index in zip(rows, order, strict=True):
        name = "999" if index == 60 else f"{index:03}"
        with Image.open(folder / f"{name}.png") as image:
            assert np.array_equal(row, np.asarray(image.convert("RGB")))


def test_a_folder_of_an_npz_holds_its_images_and_nothing_else(folder, tmp_path):
    main(["convert", str(folder), str(tmp_path / "samples.npz")])
    main(["convert", str(tmp_path / "samples.npz"), str(tmp_path / "back")])
    assert {path.suffix for path in (tmp_path / "back").iterdir()} == {".png"}
    for name in ("samples.npz", "back"):
        assert sum(len(batch) for batch in read_images(tmp_path / name)) == 61
    there, back = (torch.cat(list(read_images(tmp_path / n))) for n in ("samples.npz", "back"))
    assert torch.equal(there, back)


def test_images_of_different_sizes_make_no_npz(folder, tmp_path):
    Image.new("RGB", (5, 5)).save(folder / "500.png")
    with pytest.raises(ValueError, match=r"an npz takes images of one size"):
        convert(folder, tmp_path / "samples.npz")
    assert not (tmp_path / "samples.npz").exists()


def test_a_folder_that_holds_something_is_left_alone(folder, tmp_path):
    convert(folder, tmp_path / "samples.npz")
    with pytest.raises(ValueError, match="is not empty"):
        convert(tmp_path / "samples.npz", folder)
