"""Weights that are published in torch's own format: read, and never executed."""

import pickle
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ditprune.metrics.features import building

DAMAGED = (
    OSError,
    EOFError,
    LookupError,
    RuntimeError,
    AttributeError,
    TypeError,
    struct.error,
    ValueError,
)
"""What torch raises of files that are missing, damaged or of another network."""


def read_tensors(weights: str | None, address: str) -> dict[str, Tensor]:
    """Read tensors from a local path, or download them once, from an address with a hash.

    Some authors keep them one level deeper, as `state_dict`.
    """
    if weights is None:
        return torch.hub.load_state_dict_from_url(
            address, map_location="cpu", check_hash=True, weights_only=True
        )
    content: Any = torch.load(weights, map_location="cpu", weights_only=True)
    return dict(content.get("state_dict", content))


def origin(weights: str | None, address: str) -> str:
    """Name the file that is read, and for a download where it is kept."""
    return weights or f"{address} (kept in {torch.hub.get_dir()}/checkpoints)"


@contextmanager
def loading(what: str, origin: str, way_out: str) -> Iterator[None]:
    """Load a network's weights; an error says what is missing, from where, and what would do.

    Raises:
        ValueError: if the weights cannot be had, or are not this network's.
    """
    try:
        with building():
            yield
    except pickle.UnpicklingError:
        # torch's message is left out: it advises to open the file without the check.
        raise ValueError(
            f"refused to load {what} from {origin}: the file holds other things than tensors and "
            f"could run code. {way_out}"
        ) from None
    except DAMAGED as error:
        why = str(error) or "the file is empty or cut off"
        raise ValueError(f"cannot load {what} from {origin}: {why}. {way_out}") from error
