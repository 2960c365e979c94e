"""Which images of a published data set are drawn again, and compared with."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from ditprune.atomic import writing


@dataclass(frozen=True)
class Catalogue:
    """Entries of a data set: what was chosen, so that others can choose the same.

    A Frechet distance depends on which 30,000 of COCO's images it is measured on.
    """

    name: str
    """Of the data set and its part."""
    ids: Sequence[str]
    categories: Sequence[str] = ()
    """Of each entry; none, where the data set has none."""

    @property
    def digest(self) -> str:
        """Return sixteen digits of the SHA-256 of the ids, one on each line."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:16]

    def text(self) -> str:
        """Return the ids, one on each line."""
        return "".join(f"{each}\n" for each in self.ids)

    def save(self, path: Path) -> None:
        """Write the ids, one on each line."""
        with writing(path) as draft:
            draft.write_text(self.text())

    def __str__(self) -> str:
        """Return `COCO val2014, 5000 images, ids 0123456789abcdef`."""
        return f"{self.name}, {len(self.ids)} images, ids {self.digest}"

    def members(self, count: int | None = None) -> Mapping[str, Int64[np.ndarray, " k"]]:
        """Return the places of every category's entries, by its name; among the first ones."""
        labels = np.array(self.categories[:count])
        return {str(each): np.flatnonzero(labels == each) for each in np.unique(labels)}
