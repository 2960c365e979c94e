import hashlib
import json

import numpy as np
import pytest
import torch
from captioned_folders import CATEGORIES, captioned_folder, coco, mjhq, picture
from PIL import Image

from ditprune.datamodules import COCO, MJHQ30K, CaptionedDataSet
from ditprune.datamodules.captioned import square


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def of_folder(folder, **options) -> CaptionedDataSet:
    return CaptionedDataSet(folder, **{"num_images": 12, "category_column": "kind", **options})


SETS = {
    "coco": lambda folder, **options: COCO(coco(folder), **{"num_images": 12, **options}),
    "mjhq": lambda folder, **options: MJHQ30K(mjhq(folder), **{"num_images": 12, **options}),
    "folder": lambda folder, **options: of_folder(captioned_folder(folder), **options),
}


def number_in(text: str) -> int:
    return int(text.split()[1])


@pytest.mark.parametrize("kind", SETS)
def test_every_image_stands_at_the_place_of_its_prompt_and_category(kind, tmp_path):
    data = SETS[kind](tmp_path / "set", side=None)
    images = [image for batch in data.reference_dataloader() for image in batch]
    assert len(images) == len(data.prompts) == 12
    for image, prompt, name in zip(images, data.prompts, data.catalogue.ids, strict=True):
        number = number_in(prompt)
        assert int(name, 16 if kind == "mjhq" else 10) == number
        height, width = image.shape[1:]
        drawn = picture(number, width, height)
        if kind == "folder":  # the others are compressed
            assert image.permute(1, 2, 0).numpy().tolist() == np.asarray(drawn).tolist()
        elif kind != "coco" or number != 3:
            error = np.asarray(drawn).astype(float) - image.permute(1, 2, 0).numpy()
            other = np.asarray(picture(number + 1, width, height)).astype(float)
            assert np.abs(error).mean() < 0.8 * np.abs(other - np.asarray(drawn)).mean()
    if kind != "coco":
        kinds = [CATEGORIES[number_in(prompt) % 3] for prompt in data.prompts]
        assert list(data.catalogue.categories) == kinds


@pytest.mark.parametrize("kind", SETS)
def test_the_choice_is_by_the_seed_and_the_ids_alone(kind, tmp_path):
    first = SETS[kind](tmp_path / "set", num_images=5)
    again = type(first)
    assert len(first.catalogue.ids) == 5
    other = SETS[kind](tmp_path / "other", num_images=5, seed=1)
    whole = SETS[kind](tmp_path / "whole")
    assert first.catalogue.ids == whole.catalogue.ids[:5]
    assert first.catalogue.ids != other.catalogue.ids
    assert first.catalogue.ids != sorted(first.catalogue.ids)
    assert again is type(whole)
    text = "".join(f"{name}\n" for name in first.catalogue.ids)
    assert first.catalogue.digest == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_order_of_the_file_changes_nothing(tmp_path):
    folder = mjhq(tmp_path / "set")
    before = MJHQ30K(folder, num_images=5).catalogue
    path = tmp_path / "set" / "meta_data.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items()))))
    assert MJHQ30K(folder, num_images=5).catalogue == before


def test_calibration_takes_captions_of_other_images_while_there_are_enough(tmp_path):
    folder = coco(tmp_path)
    few = COCO(folder, num_images=5, num_calibration_samples=7)
    assert set(few.calibration_conditions()).isdisjoint(few.prompts)
    assert len(set(few.calibration_conditions())) == 7
    all_of_them = COCO(folder, num_images=12, num_calibration_samples=4)
    assert all_of_them.calibration_conditions() == all_of_them.prompts[:-5:-1]


def test_images_are_drawn_for_the_first_prompts_and_not_for_more_than_there_are(tmp_path):
    data = COCO(coco(tmp_path), num_images=5)
    assert data.evaluation_conditions(3).tolist() == [0, 1, 2]
    assert data.evaluation_prompts(3) == data.prompts[:3]
    with pytest.raises(ValueError, match="num_samples=6 images, and .* num_images=5 of COCO val"):
        data.evaluation_conditions(6)


def test_photographs_are_cut_and_scaled_as_pillow_does(tmp_path):
    data = COCO(coco(tmp_path), num_images=12, side=20)
    [batch] = data.reference_dataloader()
    assert batch.shape == (12, 3, 20, 20)
    name = f"COCO_val2014_{data.catalogue.ids[0]}.jpg"
    with Image.open(tmp_path / "val2014" / name) as whole:
        short = min(whole.size)
        left, top = (whole.width - short) // 2, (whole.height - short) // 2
        cut = whole.convert("RGB").crop((left, top, left + short, top + short))
        expected = cut.resize((20, 20), Image.Resampling.BICUBIC)
    assert batch[0].permute(1, 2, 0).numpy().tolist() == np.asarray(expected).tolist()
    grey = data.catalogue.ids.index(f"{3:012d}")
    assert torch.equal(batch[grey, 0], batch[grey, 1])


def test_a_square_of_the_side_that_is_asked_for_is_left_as_it_is():
    image = picture(0, 32, 32)
    assert np.array_equal(np.asarray(square(image, 32)), np.asarray(image))


def test_one_category_can_be_taken_alone(tmp_path):
    folder = mjhq(tmp_path)
    food = MJHQ30K(folder, num_images=4, category="food")
    assert {number_in(prompt) % 3 for prompt in food.prompts} == {1}
    assert food.catalogue.name == "MJHQ-30K food"
    with pytest.raises(ValueError, match="no category 'cars'; there are animals, food, people"):
        MJHQ30K(folder, num_images=4, category="cars")


def test_the_archive_may_be_unpacked_without_its_own_folder(tmp_path):
    folder = mjhq(tmp_path / "set")
    for category in CATEGORIES:
        (tmp_path / "set" / "mjhq30k_imgs" / category).rename(tmp_path / "set" / category)
    (tmp_path / "set" / "mjhq30k_imgs").rmdir()
    assert len(MJHQ30K(folder, num_images=12).prompts) == 12


def test_captions_may_be_several_and_categories_numbers(tmp_path):
    import datasets

    features = datasets.Features(
        image=datasets.Image(),
        caption=datasets.List(datasets.Value("string")),
        kind=datasets.ClassLabel(names=list(CATEGORIES)),
    )
    rows = {
        "image": [picture(number) for number in range(4)],
        "caption": [[f"image {number}", "a second caption"] for number in range(4)],
        "kind": [2, 0, 1, 2],
    }
    path = tmp_path / "set.parquet"
    datasets.Dataset.from_dict(rows, features).to_parquet(path)
    data = CaptionedDataSet(str(path), num_images=4, category_column="kind")
    for prompt, kind in zip(data.prompts, data.catalogue.categories, strict=True):
        assert kind == CATEGORIES[rows["kind"][number_in(prompt)]]


@pytest.mark.parametrize("num_images", [0, 13])
def test_more_images_than_there_are_or_none_are_refused(num_images, tmp_path):
    with pytest.raises(ValueError, match=f"1 to 12, .* of COCO val2014; got {num_images}"):
        COCO(coco(tmp_path), num_images=num_images)


def test_what_is_not_there_or_not_of_the_data_set_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*captions_val2017.json: No such file"):
        COCO(coco(tmp_path / "coco"), split="val2017")
    annotations = tmp_path / "coco" / "annotations" / "captions_val2014.json"
    annotations.write_text('{"images": [{"id": 1}], "annotations": [{"id": 1}]}')
    with pytest.raises(ValueError, match="none of COCO's: it lacks 'image_id'"):
        COCO(str(tmp_path / "coco"))
    annotations.write_text('{"images": [')
    with pytest.raises(ValueError, match="captions_val2014.json is no JSON, or cut off"):
        COCO(str(tmp_path / "coco"))
    annotations.write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, and holds a list"):
        COCO(str(tmp_path / "coco"))
    folder = mjhq(tmp_path / "mjhq")
    (tmp_path / "mjhq" / "mjhq30k_imgs" / "food" / "0001.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 12 images are not where they .*food/0001.jpg"):
        MJHQ30K(folder, num_images=12)
    (tmp_path / "mjhq" / "meta_data.json").write_text('{"0000": {"category": "food"}}')
    with pytest.raises(ValueError, match="is not MJHQ-30K's: KeyError\\('prompt'\\)"):
        MJHQ30K(folder, num_images=1)
    with pytest.raises(ValueError, match=r"no column 'caption'; .* by prompt_column="):
        source = tmp_path / "records.jsonl"
        source.write_text('{"text": "a cat"}')
        CaptionedDataSet(str(source), num_images=1)


def test_a_file_that_is_no_image_is_named_when_it_is_read(tmp_path):
    data = COCO(coco(tmp_path), num_images=12)
    (tmp_path / "val2014" / "COCO_val2014_000000000005.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read image 000000000005 of COCO val2014"):
        list(data.reference_dataloader())
    source = tmp_path / "records.jsonl"
    source.write_text('{"caption": "a cat", "image": "cat.png"}')
    words = CaptionedDataSet(str(source), num_images=1)
    with pytest.raises(ValueError, match="column 'image' holds str and no image"):
        list(words.reference_dataloader())


@pytest.mark.parametrize("captions", [["a cat", None], ["a cat", ""]])
def test_an_image_without_a_caption_is_named_at_once(tmp_path, captions):
    rows = [json.dumps({"caption": caption, "image": "cat.png"}) for caption in captions]
    (tmp_path / "records.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="1 of 2 images .* no caption in 'caption', .* row 1 for"):
        CaptionedDataSet(str(tmp_path / "records.jsonl"), num_images=1)


def test_an_image_of_more_than_eight_bits_is_not_cut_off_silently(tmp_path):
    import datasets

    (tmp_path / "images").mkdir()
    deep = Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16))
    deep.save(tmp_path / "images" / "deep.png")
    rows = {"image": [str(tmp_path / "images" / "deep.png")], "caption": ["deep"]}
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "set.parquet")
    data = CaptionedDataSet(str(tmp_path / "set.parquet"), num_images=1)
    with pytest.raises(ValueError, match="cannot read image 00000000 .* more than 8 bits"):
        list(data.reference_dataloader())
