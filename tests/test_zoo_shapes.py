import pytest
import torch

from ditprune.zoo.shapes import (
    COLOURS,
    HEADS,
    LAYOUTS,
    SHAPES,
    SIZES,
    attributes,
    captions,
    draw,
    parse,
)


def picture(text: str, seed: int = 0) -> torch.Tensor:
    """8-bit pixels [64, 64, 3]."""
    image = draw(parse(text), torch.Generator().manual_seed(seed))
    return ((image + 1) * 127.5).round().permute(1, 2, 0)


def pixels_of(colour: str, image: torch.Tensor) -> torch.Tensor:
    """Where a colour is: [64, 64]."""
    return (image - torch.tensor(COLOURS[colour])).abs().amax(-1) < 16


def centre_of(mask: torch.Tensor) -> tuple[float, float]:
    rows, columns = torch.where(mask)
    return columns.float().mean().item(), rows.float().mean().item()


def test_every_caption_reads_back_as_it_was_said():
    assert all(str(parse(text)) == text for text in captions(False) + captions(True))


def test_there_are_all_captions_of_one_and_two_things_once():
    things = 3 * len(COLOURS) * len(SHAPES)
    every = captions(False) + captions(True)
    assert len(set(every)) == len(every) == things + 4 * things**2


def test_no_scene_is_held_out_in_one_caption_and_trained_in_its_turned_one():
    trained, held_out = set(captions(False)), set(captions(True))
    assert {str(parse(text).scene()) for text in held_out}.isdisjoint(
        str(parse(text).scene()) for text in trained
    )
    assert 0.09 < len(held_out) / len(trained | held_out) < 0.12


@pytest.mark.parametrize(
    ("text", "turned"),
    [
        ("a red circle right of a blue square", "a blue square left of a red circle"),
        ("a red circle below a large blue square", "a large blue square above a red circle"),
        ("a red circle above a blue square", "a red circle above a blue square"),
        ("a small black triangle", "a small black triangle"),
    ],
)
def test_a_scene_begins_on_the_left_or_above(text, turned):
    assert str(parse(text).scene()) == turned


@pytest.mark.parametrize("text", ["", "a cat", "a red circle left of", "two red circles"])
def test_what_is_no_caption_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="reads? 'a small red circle'"):
        parse(text)


@pytest.mark.parametrize(
    ("relation", "axis", "sign"),
    [("left of", 0, -1), ("right of", 0, 1), ("above", 1, -1), ("below", 1, 1)],
)
@pytest.mark.parametrize("seed", range(5))
def test_the_first_thing_is_where_the_caption_says(relation, axis, sign, seed):
    image = picture(f"a large red circle {relation} a small blue square", seed)
    first, second = (centre_of(pixels_of(colour, image)) for colour in ("red", "blue"))
    away = [a - b for a, b in zip(first, second, strict=True)]
    assert away[axis] * sign > 20
    assert abs(away[1 - axis]) < 14


@pytest.mark.parametrize("shape", SHAPES)
def test_large_is_larger_than_small_by_far(shape):
    areas = {
        size: [
            pixels_of("green", picture(f"a {size} green {shape}", seed)).sum() for seed in range(9)
        ]
        for size in SIZES
    }
    assert min(areas["large"]) > 2 * max(areas["small"])


def test_shapes_fill_their_bounding_boxes_as_shapes_do():
    def fill(shape: str) -> float:
        mask = pixels_of("black", picture(f"a large black {shape}"))
        rows, columns = torch.where(mask)
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        return (mask.sum() / box).item()

    assert fill("square") == pytest.approx(1, abs=0.02)
    assert fill("circle") == pytest.approx(torch.pi / 4, abs=0.03)
    assert fill("triangle") == pytest.approx(0.5, abs=0.05)


def test_what_a_caption_leaves_open_is_left_to_chance():
    areas = {int(pixels_of("red", picture("a red square", seed)).sum() > 250) for seed in range(20)}
    assert areas == {0, 1}


def test_one_seed_draws_one_picture():
    text = "a red circle left of a yellow triangle"
    assert torch.equal(picture(text, 3), picture(text, 3))
    assert not torch.equal(picture(text, 3), picture(text, 4))


def test_attributes_are_those_of_the_scene_and_open_ones_are_marked():
    names = dict(
        zip(HEADS, attributes(parse("a red circle right of a large blue square")), strict=True)
    )
    assert names == {
        "layout": LAYOUTS.index("left of"),
        "first size": list(SIZES).index("large"),
        "first colour": list(COLOURS).index("blue"),
        "first shape": SHAPES.index("square"),
        "second size": -1,
        "second colour": list(COLOURS).index("red"),
        "second shape": SHAPES.index("circle"),
    }


def test_other_scenes_have_other_attributes():
    every = captions(False) + captions(True)
    scenes = {str(parse(text).scene()) for text in every}
    assert len({tuple(attributes(parse(text))) for text in every}) == len(scenes)
