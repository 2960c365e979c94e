"""Which family a model is of, by its class."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from ditprune.families.base import Family


def family_of(model: nn.Module) -> Family | None:
    """Return the family that names the model's class among its own, or None.

    Families of yours count as soon as they are imported.
    """
    name = type(model).__name__
    return next((kind() for kind in kinds(Family) if name in kind.model_classes), None)


def kinds(family: Any) -> Iterator[Any]:
    """Yield the classes below a family."""
    for kind in family.__subclasses__():
        yield kind
        yield from kinds(kind)
