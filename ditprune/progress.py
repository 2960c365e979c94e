"""What of a pruned folder is finished: a run that was interrupted goes on behind it."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ditprune.atomic import demand_writable, writing
from ditprune.batch_files import tensors_of
from ditprune.families import Batch, Family
from ditprune.masks import MaskSet
from ditprune.pipeline import LayerErrors
from ditprune.recipe import Recipe
from ditprune.shards import INDEX, NAME, Shards, entries_in, header_of

PROGRESS = "pruning_progress.json"
OUTSIDE = "outside"
"""The part of a model that is in no block."""


@dataclass(frozen=True)
class Finished:
    """What is known of a part of the model that was written."""

    shard: str
    """SHA-256 of its file."""
    masks: str = ""
    """Hash of its masks, if it was pruned."""
    errors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Of its layers, by their names."""


class Progress:
    """Writes a pruned model part by part, and remembers which are there."""

    def __init__(self, folder: Path, decided_by: Mapping[str, Any], blocks: Sequence[str]) -> None:
        """Begin, or go on.

        Raises:
            ValueError: if the folder holds something else.
        """
        demand_writable(folder)
        remove_drafts(folder)
        self.folder = folder
        self.decided_by = decided_by
        self.parts = [OUTSIDE, *blocks]
        self.finished = self.valid(self.noted())
        self.note()  # first of all: from now on the folder is known to be ours

    def noted(self) -> dict[str, Finished]:
        """Return what an earlier run has noted."""
        path = self.folder / PROGRESS
        if not path.exists():
            if any(self.folder.iterdir()):
                raise ValueError(
                    f"{self.folder} holds something else: give a new folder, or an empty one"
                )
            return {}
        try:
            content = json.loads(path.read_text())
            before = content["decided_by"]
            noted = {name: Finished(**entry) for name, entry in content["finished"].items()}
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"cannot read {path}: {error}. Remove {self.folder}, and prune anew"
            ) from error
        changed = [name for name, value in self.decided_by.items() if before.get(name) != value]
        if changed:
            raise ValueError(
                f"{self.folder} was begun with another {' and another '.join(changed)}: go on with "
                "the same, or give a new folder"
            )
        return noted

    def valid(self, noted: Mapping[str, Finished]) -> dict[str, Finished]:
        """Return those of the parts whose files are as they were written."""
        return {part: entry for part, entry in noted.items() if self.is_whole(part, entry)}

    def is_whole(self, part: str, entry: Finished) -> bool:
        """Tell if the files of a part are as they were written."""
        if not self.shard(part).is_file() or file_digest(self.shard(part)) != entry.shard:
            return False
        if not entry.masks:
            return True
        try:
            return MaskSet.load(self.masks(part)).hash() == entry.masks
        except ValueError:
            return False

    def finish(
        self,
        part: str,
        tensors: Mapping[str, Tensor],
        masks: MaskSet | None = None,
        errors: Mapping[str, LayerErrors] | None = None,
    ) -> None:
        """Write a part, and note that it is there."""
        if masks is not None:
            masks.save(self.masks(part))
        with writing(self.shard(part)) as draft:
            whole = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
            save_file(whole, draft, {"format": "pt"})
        self.finished[part] = Finished(
            file_digest(self.shard(part)),
            "" if masks is None else masks.hash(),
            {name: (each.masked, each.repaired) for name, each in (errors or {}).items()},
        )
        self.note()

    def note(self) -> None:
        """Write down what is finished."""
        content = {
            "decided_by": self.decided_by,
            "finished": {name: vars(entry) for name, entry in self.finished.items()},
        }
        write_json(self.folder / PROGRESS, content)

    def shard(self, part: str) -> Path:
        """Return the file of a part's weights."""
        number, count = self.parts.index(part) + 1, len(self.parts)
        return self.folder / f"{NAME}-{number:05}-of-{count:05}.safetensors"

    def masks(self, block: str) -> Path:
        """Return the file of a block's masks."""
        return self.folder / "masks" / f"{block}.safetensors"

    def errors(self) -> dict[str, LayerErrors]:
        """Return the errors of the finished layers, by their names."""
        known = chain.from_iterable(entry.errors.items() for entry in self.finished.values())
        return {name: LayerErrors(*values) for name, values in known}

    def close(self, config: bytes) -> None:
        """Write what makes the shards a model."""
        shards = [self.shard(part) for part in self.parts]
        places = {name: p.name for p in shards for name in entries_in(p, header_of(p))}
        size = sum(path.stat().st_size for path in shards)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        write_json(self.folder / INDEX, index)
        with writing(self.folder / "config.json") as draft:
            draft.write_bytes(config)


def remove_drafts(folder: Path) -> None:
    """Remove what a run had not written whole when it was killed."""
    for pattern in (f".{PROGRESS}.*", f".{NAME}-*", "masks/.*.safetensors.*"):
        for draft in folder.glob(pattern):
            draft.unlink()


def what_decides(
    source: Shards, recipe: Recipe, family: Family, samples: Iterable[Batch]
) -> dict[str, Any]:
    """Return what must be the same for a run to go on with what another one has begun."""
    return {
        "source": source.digest(),
        "recipe": recipe.parts(),
        "family": repr(family),
        "samples": samples_digest(samples),
    }


def samples_digest(samples: Iterable[Batch]) -> str:
    """Return a digest of all that calibration samples hold."""
    found = hashlib.sha256()
    for sample in samples:
        for name, x in tensors_of(sample).items():
            found.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
            found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            found.update(chunk)
    return found.hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    with writing(path) as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n")
