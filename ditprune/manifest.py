"""What decides a folder of samples, in words: its name is their digest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from ditprune.atomic import writing
from ditprune.sampling_plan import SamplingPlan

ABOUT = (
    "images that ditprune's EvaluationCallback drew, and what was measured of them; nothing else "
    "refers to this folder: without it they are drawn again"
)


@dataclass(frozen=True)
class Manifest:
    """What decides the images.

    The first ones are drawn anew each time, so that whatever changes them, be it a schedule, the
    precision or code, changes the manifest. What can change others alone is told beside them.
    """

    sampler: str
    weights: str
    """Digest of all parameters and buffers."""
    conditions: str
    prompts: str
    num_samples: int
    chunk_size: int
    first_seed: int
    first_images: str
    shape: tuple[int, ...]

    @property
    def digest(self) -> str:
        """Return what the folder is named after."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode())

    def settle(self, home: Path, title: str) -> None:
        """Write the manifest to its folder, or compare it with the one that is there.

        Raises:
            ValueError: if that is another one, and says in what.
        """
        path = home / "manifest.json"
        found = read_manifest(path)
        if found is None:
            content = {"about": ABOUT, "drawn_first_for": title, "decided_by": asdict(self)}
            with writing(path) as draft:
                draft.write_text(json.dumps(content, indent=2) + "\n")
        elif changed := differences(found, plain(self)):
            raise ValueError(
                f"{path} tells of other samples: {changed}. It was edited, or the folder renamed; "
                "delete the folder, and they are drawn again"
            )


def demand_pairs(pruned: Manifest, dense: Manifest) -> None:
    """Raise a ValueError unless two models were asked for the same, and from the same noise."""
    of_model = ("sampler", "weights", "first_images")
    asked = [{k: v for k, v in plain(m).items() if k not in of_model} for m in (dense, pruned)]
    if changed := differences(*asked):
        raise ValueError(
            f"the dense and the pruned model's images are no pairs, they differ in {changed}: "
            "measure both with one EvaluationCallback and one datamodule"
        )


def differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Return what differs, as `chunk_size (4, and not 100)`."""
    names = dict.fromkeys([*expected, *found])
    changed = [name for name in names if found.get(name) != expected.get(name)]
    return ", ".join(f"{n} ({found.get(n)}, and not {expected.get(n)})" for n in changed)


def plain(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as JSON gives it back."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(manifest)))
    return content


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return what decided the samples of a folder, or None where nothing readable does."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())["decided_by"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content


@runtime_checkable
class Weighty(Protocol):
    """Whatever has weights: a module, for instance."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return them by name."""
        ...


def describe(sampler: object, plan: SamplingPlan, first: UInt8[Tensor, "b c h w"]) -> Manifest:
    """Return the manifest of what a sampler draws, whose first images are known."""
    prompts = json.dumps(list(plan.prompts)).encode()
    return Manifest(
        sampler=type(sampler).__name__,
        weights=digest_of_weights(sampler) if isinstance(sampler, Weighty) else "",
        conditions=sha256(plan.conditions.numpy().tobytes()),
        prompts=sha256(prompts) if plan.prompts else "",
        num_samples=len(plan.conditions),
        chunk_size=plan.chunk_size,
        first_seed=plan.seeds[0],
        first_images=sha256(first.numpy().tobytes()),
        shape=tuple(first.shape[1:]),
    )


def digest_of_weights(holder: Weighty) -> str:
    """Return a digest of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in holder.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(content.numpy().tobytes())
    return digest.hexdigest()[:16]


def sha256(content: bytes) -> str:
    """Return sixteen digits of a digest."""
    return hashlib.sha256(content).hexdigest()[:16]
