"""Captioned pictures of coloured shapes, drawn by formula: as many as one likes."""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

IMAGE_SIZE = 64
SIZES = {"small": 6.5, "large": 12.0}
"""Names, and half the width in pixels."""
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (40, 80, 220),
    "yellow": (240, 200, 40),
    "purple": (150, 60, 180),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle")
RELATIONS = ("left of", "right of", "above", "below")
LAYOUTS = ("", "left of", "above")
"""Relations of a scene, as `Caption.scene` turns it."""
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
}
HEADS: dict[str, int] = {
    "layout": len(LAYOUTS),
    **{
        f"{place} {name}": len(values)
        for place in ("first", "second")
        for name, values in ATTRIBUTES.items()
    },
}
"""What can be read off a picture, and how many values each has."""
UNSAID = -1
PAPER = 245
"""The background's level of grey."""
HELD_OUT = 10
"""One scene in so many is never trained on."""


@dataclass(frozen=True)
class Thing:
    """One shape, as a caption tells of it."""

    size: str
    """Empty where the caption leaves it open."""
    colour: str
    shape: str

    def __str__(self) -> str:
        """Return it with its article."""
        return " ".join(word for word in ("a", self.size, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Caption:
    """What is to be seen: one thing, or two and where the first one is."""

    first: Thing
    relation: str = ""
    second: Thing | None = None

    def __str__(self) -> str:
        """Return the caption as people say it."""
        return f"{self.first} {self.relation} {self.second}" if self.second else str(self.first)

    def scene(self) -> "Caption":
        """Return the caption of the same picture that begins on the left, or above."""
        turned = {"right of": "left of", "below": "above"}.get(self.relation)
        if turned is None or self.second is None:
            return self
        return Caption(self.second, turned, self.first)

    def is_held_out(self) -> bool:
        """Tell if this picture is kept from training, however its caption is turned."""
        digest = hashlib.sha256(str(self.scene()).encode()).digest()
        return digest[0] % HELD_OUT == 0


THING = rf"a (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
PATTERN = re.compile(rf"{THING}(?: ({'|'.join(RELATIONS)}) {THING})?")


def parse(text: str) -> Caption:
    """Return what a caption says.

    Raises:
        ValueError: if it is none of these pictures.
    """
    found = PATTERN.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text!r} is no caption of these pictures. They read 'a small red circle' or 'a red "
            f"circle left of a large blue square': colours are {', '.join(COLOURS)}, shapes "
            f"{', '.join(SHAPES)}, relations {', '.join(RELATIONS)}"
        )
    parts = [part or "" for part in found.groups()]
    second = Thing(*parts[4:]) if parts[3] else None
    return Caption(Thing(*parts[:3]), parts[3], second)


def attributes(caption: Caption) -> list[int]:
    """Return the value of every head, and -1 where the caption leaves it open."""
    scene = caption.scene()
    things = [scene.first, scene.second]
    return [LAYOUTS.index(scene.relation)] + [
        values.index(said) if thing and (said := getattr(thing, name)) else UNSAID
        for thing in things
        for name, values in ATTRIBUTES.items()
    ]


class Pictures(NamedTuple):
    """Pictures in [-1, 1], their captions and what is to be read off them."""

    images: Float[Tensor, "b 3 64 64"]
    captions: Sequence[str]
    attributes: Int[Tensor, "b heads"]


class Latents(NamedTuple):
    """Pictures as an autoencoder has them, and their captions."""

    latents: Float[Tensor, "b 8 8 8"]
    captions: Sequence[str]


@cache
def captions(held_out: bool) -> list[str]:
    """Return those that are trained on, or those that are not: 11,718 together.

    They come in an order that looks random and is always the same.
    """
    things = [
        Thing(size, colour, shape)
        for size, colour, shape in itertools.product(("", *SIZES), COLOURS, SHAPES)
    ]
    pairs = itertools.product(things, RELATIONS, things)
    every = [*map(Caption, things), *(Caption(*parts) for parts in pairs)]
    texts = [str(caption) for caption in every if caption.is_held_out() == held_out]
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def draw(caption: Caption, generator: torch.Generator) -> Float[Tensor, "3 64 64"]:
    """Return a picture of a caption in [-1, 1]; what it leaves open is left to chance."""
    scene = caption.scene()
    jitter = torch.rand(2, 8, generator=generator) * 2 - 1
    image = torch.full((3, IMAGE_SIZE, IMAGE_SIZE), PAPER + 8 * jitter[0, 7].item())
    things = [scene.first, scene.second] if scene.second else [scene.first]
    for place, (thing, chance) in enumerate(zip(things, jitter, strict=False)):
        colour = torch.tensor(COLOURS[thing.colour]) + 10 * chance[3:6]
        size = thing.size or ("small" if chance[6] < 0 else "large")
        radius = SIZES[size] * (1 + 0.08 * chance[2].item())
        x, y = centre(scene.relation, place, chance[0].item(), chance[1].item())
        shade = coverage(thing.shape, radius, x, y)
        image = image * (1 - shade) + colour.view(3, 1, 1) * shade
    return image.clamp(0, 255) / 127.5 - 1


def centre(relation: str, place: int, along: float, across: float) -> tuple[float, float]:
    """Return where a thing is, x before y, by its place in the scene and two random numbers."""
    middle = IMAGE_SIZE / 2
    if not relation:
        return middle + 8 * along, middle + 8 * across
    near, far = middle * (0.5 + place) + 3 * along, middle + 6 * across
    return (near, far) if relation == "left of" else (far, near)


def coverage(shape: str, radius: float, x: float, y: float) -> Float[Tensor, "64 64"]:
    """Return how much of every pixel a shape covers."""
    pixels = torch.arange(IMAGE_SIZE) + 0.5
    right, down = torch.meshgrid(pixels - x, pixels - y, indexing="xy")
    if shape == "circle":
        distance = torch.hypot(right, down) - radius
    elif shape == "square":
        distance = torch.maximum(right.abs(), down.abs()) - 0.9 * radius
    else:
        slope = 0.9 * right.abs() - 0.45 * down - 0.45 * radius
        distance = torch.maximum(slope, down - 0.9 * radius)
    return (0.5 - distance).clamp(0, 1)
