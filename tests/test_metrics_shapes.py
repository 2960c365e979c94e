import pytest
import torch
from safetensors.torch import save_file

from ditprune.evaluation import to_uint8
from ditprune.metrics import AttributeAccuracy, ShapesClassifier
from ditprune.zoo.shapes import captions, draw, parse


def pictures(texts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return to_uint8(torch.stack([draw(parse(text), generator) for text in texts]))


@pytest.mark.parametrize(
    ("shown", "said", "right"),
    [
        ("a small red circle left of a large blue square",) * 2 + (True,),
        (
            "a small red circle left of a large blue square",
            "a blue square right of a red circle",
            True,
        ),
        ("a large green triangle", "a green triangle", True),
        ("a large green triangle", "a small green triangle", False),
        ("a large green triangle", "a large green circle", False),
        ("a large green triangle", "a large black triangle", False),
        ("a green triangle", "a green triangle above a red circle", False),
        ("a red circle above a blue square", "a blue square above a red circle", False),
        ("a red circle above a blue square", "a red circle left of a blue square", False),
        ("a red circle above a blue square", "a blue circle above a red square", False),
    ],
)
def test_a_picture_is_right_if_all_that_was_said_of_it_is_seen(shown, said, right):
    score = AttributeAccuracy().score(pictures([shown] * 4), [said] * 4)
    assert score.tolist() == [100.0 * right] * 4


def test_the_reader_sees_what_was_drawn_from_captions_held_out():
    texts = captions(held_out=True)[:300]
    assert AttributeAccuracy().score(pictures(texts), texts).mean() >= 99


def test_features_do_not_depend_on_the_batch():
    images = pictures(captions(held_out=True)[:5])
    classifier = ShapesClassifier()
    whole = classifier.extract(images).pool
    single = torch.cat([classifier.extract(image[None]).pool for image in images])
    assert torch.allclose(whole, single, atol=1e-5)
    assert whole.shape == (5, 128)
    assert classifier.extract(images[:0]).pool.shape == (0, 128)


def test_other_pictures_prompts_and_weights_are_refused(tmp_path):
    digits = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\(n, 3, 64, 64\); got \(2, 1, 8, 8\)"):
        ShapesClassifier().extract(digits)
    images = pictures(["a red circle"])
    with pytest.raises(ValueError, match="1 images and 2 prompts"):
        AttributeAccuracy().score(images, ["a red circle"] * 2)
    with pytest.raises(ValueError, match="'a photo of a cat' is no caption"):
        AttributeAccuracy().score(images, ["a photo of a cat"])
    save_file({"head.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("other", "missing"):
        with pytest.raises(ValueError, match=f"cannot load the reader .*{name}.safetensors"):
            _ = ShapesClassifier(tmp_path / f"{name}.safetensors").name
