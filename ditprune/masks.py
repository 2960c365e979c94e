"""The result of pruning: which weights stay."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ditprune.atomic import writing
from ditprune.targets import PruneTarget, Role


def weight_matrix(model: nn.Module, target: PruneTarget) -> Float[Tensor, "out in"]:
    """Return a layer's weight as a matrix that shares its memory; a 1x1 convolution has one too."""
    weight: Tensor = model.get_submodule(target.name).get_parameter("weight").data
    return weight.flatten(1)


def pruned_part(
    weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"]
) -> Float[Tensor, " pruned"]:
    """Return the weights that the mask takes, on the weight's device."""
    return weight[~mask.to(weight.device)]


@dataclass(frozen=True)
class MaskSet:
    """The mask of every target: True = keep."""

    masks: Mapping[PruneTarget, Bool[Tensor, "out in"]]

    def sparsity(self) -> float:
        """Return the fraction of the targets' weights that goes."""
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return 1 - kept / sum(mask.numel() for mask in self.masks.values())

    def hash(self) -> str:
        """Return a digest of names, shapes and bits: equal for equal masks, on any machine."""
        digest = hashlib.sha256()
        for target in sorted(self.masks, key=lambda target: target.name):
            mask = self.masks[target]  # one in memory at a time: they may be stored
            digest.update(f"{target.name}{tuple(mask.shape)}".encode())
            digest.update(pack_bits(mask).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Zero the weights that go; twice is the same as once.

        Raises:
            ValueError: if the masks are not those of this model; it is untouched then.
        """
        self.demand_fits(model)
        for target, mask in self.masks.items():
            weight = weight_matrix(model, target)
            weight.masked_fill_(~mask.to(weight.device), 0)

    def violations(self, model: nn.Module) -> list[PruneTarget]:
        """Return the layers in which a weight that went is not zero."""
        return [
            target
            for target, mask in self.masks.items()
            if pruned_part(weight_matrix(model, target), mask).count_nonzero()
        ]

    def demand_fits(self, model: nn.Module) -> None:
        """Raise a ValueError that names the layers which the model lacks or shapes otherwise."""
        modules = dict(model.named_modules())
        wrong = []
        for target, mask in self.masks.items():
            weight = getattr(modules.get(target.name), "weight", None)
            shape = None if weight is None else tuple(weight.flatten(1).shape)
            if shape != tuple(mask.shape):
                wrong.append(
                    f"{target.name}: mask {tuple(mask.shape)}, model {shape or 'lacks it'}"
                )
        if wrong:
            raise ValueError(
                f"these are the masks of another model; {len(wrong)} of {len(self.masks)} layers "
                f"differ:\n  " + "\n  ".join(wrong[:10])
            )

    def save(self, path: str | Path) -> None:
        """Write one bit a weight, as safetensors with the targets and the hash in its header."""
        tensors = {target.name: pack_bits(mask) for target, mask in self.masks.items()}
        entries = [
            {**dataclasses.asdict(target), "shape": list(mask.shape)}
            for target, mask in self.masks.items()
        ]
        header = {"format": "ditprune-masks-2", "targets": json.dumps(entries), "hash": self.hash()}
        with writing(Path(path)) as draft:
            save_file(tensors, draft, header)

    @classmethod
    def load(cls, path: str | Path) -> "MaskSet":
        """Read what `save` wrote.

        Raises:
            ValueError: if the file is missing, cut off, changed, or not a mask file.
        """
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                masks = cls(
                    {
                        t: unpack_bits(file.get_tensor(t.name), shape)
                        for t, shape in targets_in(header)
                    }
                )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"cannot read masks from {path}: {error}. It must be a file that MaskSet.save "
                "wrote, whole; copy it again or prune again."
            ) from error
        if masks.hash() != header["hash"]:
            raise ValueError(f"{path} was changed after it was written: its hash does not match")
        return masks


class StoredMasks(Mapping[PruneTarget, Tensor]):
    """Masks in files that `MaskSet.save` wrote, read one by one when asked for."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Note where each mask is."""
        self.places: dict[PruneTarget, tuple[Path, tuple[int, int]]] = {}
        for path in paths:
            with safe_open(path, "pt") as file:
                shapes = targets_in(file.metadata())
            self.places |= {target: (path, shape) for target, shape in shapes}

    def __getitem__(self, target: PruneTarget) -> Bool[Tensor, "out in"]:
        """Read one mask."""
        path, shape = self.places[target]
        with safe_open(path, "pt") as file:
            return unpack_bits(file.get_tensor(target.name), shape)

    def __iter__(self) -> Iterator[PruneTarget]:
        """Iterate over the layers."""
        return iter(self.places)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.places)


def targets_in(header: Mapping[str, str]) -> list[tuple[PruneTarget, tuple[int, int]]]:
    """Return the targets and mask shapes that a mask file's header lists."""
    shapes = [(entry, tuple(entry.pop("shape"))) for entry in json.loads(header["targets"])]
    return [
        (PruneTarget(**{**entry, "role": Role(entry["role"])}), shape) for entry, shape in shapes
    ]


def pack_bits(mask: Bool[Tensor, "out in"]) -> UInt8[Tensor, " bytes"]:
    """Return a mask's bits, row after row."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpack_bits(packed: UInt8[Tensor, " bytes"], shape: tuple[int, int]) -> Bool[Tensor, "out in"]:
    """Return the mask of a shape whose bits were packed."""
    bits = np.unpackbits(packed.numpy(), count=shape[0] * shape[1])
    return torch.from_numpy(bits.astype(bool)).reshape(shape)
