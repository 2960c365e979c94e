"""Calibration samples in a file, for a machine that has no text encoders."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ditprune.atomic import writing
from ditprune.families import Batch, Condition

FORMAT = "ditprune-batches-1"
CONDITION = "condition"


def save_batches(path: str | Path, batches: Iterable[Batch]) -> None:
    """Write calibration samples as safetensors, as they are."""
    named = [tensors_of(batch) for batch in batches]
    tensors = {f"{i}/{name}": x for i, each in enumerate(named) for name, x in each.items()}
    whole = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    header = {"format": FORMAT, "batches": json.dumps([list(each) for each in named])}
    with writing(Path(path)) as draft:
        save_file(whole, draft, header)


def load_batches(path: str | Path) -> list[Batch]:
    """Read what `save_batches` wrote.

    Raises:
        ValueError: if the file is missing, cut off, or something else.
    """
    try:
        with safe_open(path, "pt") as file:
            names = json.loads((file.metadata() or {})["batches"])
            return [
                batch_of({name: file.get_tensor(f"{i}/{name}") for name in each})
                for i, each in enumerate(names)
            ]
    except (OSError, SafetensorError, LookupError, ValueError) as error:
        raise ValueError(
            f"cannot read calibration samples from {path}: {error}. It must be a file that "
            "ditprune.save_batches wrote, whole; copy or make it again."
        ) from error


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """Return the tensors of a batch; those of a condition behind its name."""
    tensors = {name: x for name, x in batch._asdict().items() if name != CONDITION}
    if isinstance(batch.condition, Tensor):
        return {**tensors, CONDITION: batch.condition}
    return {**tensors, **{f"{CONDITION}/{name}": x for name, x in batch.condition.items()}}


def batch_of(tensors: Mapping[str, Tensor]) -> Batch:
    """Return the batch of some tensors."""
    behind = f"{CONDITION}/"
    named = {n.removeprefix(behind): x for n, x in tensors.items() if n.startswith(behind)}
    condition: Condition = tensors.get(CONDITION, named)
    return Batch(tensors["latents"], tensors["timestep"], condition, tensors["noise_level"])
