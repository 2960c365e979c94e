import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ditprune.image_files import BATCH_SIZE, count_images, read_images


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_a_folder_is_read_in_the_order_of_names_at_any_depth(tmp_path):
    (tmp_path / "b").mkdir()
    for name, seed in (("b/1.png", 2), ("a.png", 1), ("c.webp", 3)):
        Image.fromarray(pixels(seed, 4, 6, 3)).save(tmp_path / name, lossless=True)
    images = torch.cat(list(read_images(tmp_path)))
    expected = np.stack([pixels(seed, 4, 6, 3) for seed in (1, 2, 3)])
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected)


def test_batches_hold_images_of_one_size_and_kind_and_not_too_many(tmp_path):
    for i in range(BATCH_SIZE + 2):
        Image.fromarray(pixels(i, 2, 2, 3)).save(tmp_path / f"{i:03}.png")
    Image.fromarray(pixels(0, 3, 2, 3)).save(tmp_path / "900.png")
    Image.fromarray(pixels(0, 3, 2)).save(tmp_path / "901.png")
    shapes = [tuple(batch.shape) for batch in read_images(tmp_path)]
    assert shapes == [(BATCH_SIZE, 3, 2, 2), (2, 3, 2, 2), (1, 3, 3, 2), (1, 1, 3, 2)]


def test_an_npz_of_adms_evaluator_is_read(tmp_path):
    arrays = pixels(0, BATCH_SIZE + 1, 4, 6, 3)
    np.savez(tmp_path / "samples.npz", arrays)
    batches = list(read_images(tmp_path / "samples.npz"))
    assert [len(batch) for batch in batches] == [BATCH_SIZE, 1]
    assert np.array_equal(torch.cat(batches).permute(0, 2, 3, 1).numpy(), arrays)


def test_what_is_no_image_is_left_out_and_counted(tmp_path, caplog):
    Image.fromarray(pixels(0, 2, 2, 3)).save(tmp_path / "a.png")
    (tmp_path / "captions.txt").write_text("a cat")
    assert len(list(read_images(tmp_path))) == 1
    assert "1 files in" in caplog.text


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "1"])
def test_transparent_and_deep_images_are_refused(tmp_path, mode):
    Image.new(mode, (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"a.png is an image of mode {mode}"):
        list(read_images(tmp_path))


def test_a_palette_with_a_transparent_colour_is_refused_and_another_is_read(tmp_path):
    image = Image.fromarray(pixels(0, 4, 4, 3)).quantize(4)
    image.save(tmp_path / "a.png")
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(next(read_images(tmp_path))[0].permute(1, 2, 0).numpy(), expected)
    image.save(tmp_path / "a.png", transparency=0)
    with pytest.raises(ValueError, match="transparent parts"):
        list(read_images(tmp_path))


def test_no_images_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no images in .*: give a folder of .*\.png"):
        read_images(tmp_path)
    with pytest.raises(ValueError, match="no images in"):
        read_images(tmp_path / "nowhere")


def test_a_damaged_image_is_named(tmp_path):
    Image.fromarray(pixels(0, 64, 64, 3)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.png"):
        list(read_images(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": pixels(0, 2, 4, 4, 3)}, "must hold them as arr_0"),
        ({"arr_0": pixels(0, 2, 4, 4, 3).astype(np.float32)}, "float32 of shape"),
        ({"arr_0": pixels(0, 0, 4, 4, 3)}, r"shape \[0, 4, 4, 3\]"),
        ({"arr_0": np.array([{}], dtype=object)}, "it is object of shape"),
    ],
)
def test_an_npz_of_something_else_is_refused_and_never_unpickled(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_images(tmp_path / "x.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
def test_an_npz_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match="cannot read images from"):
        read_images(tmp_path / "x.npz")


def test_an_npz_that_is_cut_off_behind_its_header_is_named(tmp_path):
    whole = io.BytesIO()
    np.save(whole, pixels(0, 3, 4, 4, 3))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", whole.getvalue()[:-1])
    with pytest.raises(ValueError, match=r"x.npz is cut off"):
        list(read_images(tmp_path / "x.npz"))


def test_a_compressed_npz_is_read_too(tmp_path):
    arrays = pixels(0, 3, 4, 6, 3)
    np.savez_compressed(tmp_path / "x.npz", arrays)
    images = torch.cat(list(read_images(tmp_path / "x.npz")))
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), arrays)


def test_images_are_counted_without_being_read(tmp_path):
    np.savez(tmp_path / "x.npz", pixels(0, 3, 4, 6, 3))
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    assert (count_images(tmp_path / "x.npz"), count_images(tmp_path)) == (3, 1)


def test_an_image_so_large_that_it_may_be_an_attack_is_named(tmp_path, monkeypatch):
    Image.new("L", (60, 60)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"cannot read the image .*large\.png: .*2000"):
        list(read_images(tmp_path))
