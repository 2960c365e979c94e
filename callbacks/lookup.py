"""How callbacks find what they work on, and each other."""

from pathlib import Path
from typing import TypeVar

import lightning as L

C = TypeVar("C", bound=L.Callback)


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """Return the trainer's callbacks, an attribute that Lightning sets without declaring it."""
    return trainer.callbacks  # type: ignore[attr-defined]


def find_callback(trainer: L.Trainer, kind: type[C]) -> C | None:
    """Return the trainer's callback of a kind, or None.

    Raises:
        ValueError: if there are several.
    """
    found = [callback for callback in callbacks_of(trainer) if isinstance(callback, kind)]
    if len(found) > 1:
        raise ValueError(f"the trainer has {len(found)} {kind.__name__}s; keep one")
    return found[0] if found else None


def demand_callback(trainer: L.Trainer, kind: type[C]) -> C:
    """Return the trainer's callback of a kind, or raise a ValueError if it has none."""
    found = find_callback(trainer, kind)
    if found is None:
        raise ValueError(
            f"this takes a {kind.__name__}, and the trainer has none; pruning takes a "
            "PruneCallback and a GranularityCallback, a study a StudyCallback and an "
            f"EvaluationCallback, and there are {[type(c).__name__ for c in callbacks_of(trainer)]}"
        )
    return found


def run_folder(trainer: L.Trainer) -> Path:
    """Return the folder of the run: the logger's, else the trainer's root. All ranks must call."""
    return Path(trainer.log_dir or trainer.default_root_dir)
