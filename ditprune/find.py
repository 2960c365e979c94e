"""Finding the network that denoises, in somebody's project."""

import re
from collections.abc import Iterator
from functools import reduce
from typing import Any, NamedTuple

from torch import nn

from ditprune.families.base import Family, listing
from ditprune.families.guess import Guess, outermost_lists
from ditprune.families.known import family_of

COPIES = re.compile(r"(^|[._])(ema|teacher|averag\w*|shadow)([._]|$)")
"""Paths of copies of the network, which are not the network."""


class Found(NamedTuple):
    """A network, and its path in the module that holds it."""

    path: str
    model: nn.Module

    def __str__(self) -> str:
        """Return path, class and size."""
        size = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        return f"{self.path} ({type(self.model).__name__}, {size:.3g} M parameters)"


def demand_family(found: Found) -> Family:
    """Return the family of a network, by its class.

    Raises:
        ValueError: if no family names it, with a guess of its layers to begin with.
    """
    family = family_of(found.model)
    if family is None:
        raise ValueError(
            f"no family knows {found}; say which one by family=..., or list its layers. A guess, "
            f"to read before you use it:\n{Guess().describe(found.model)}"
        )
    return family


def find_transformer(holder: nn.Module, path: str | None = None) -> Found:
    """Return the network at a path; without one, the only one that may be meant.

    That is the one whose class a family knows, else the one made of repeated blocks. Modules
    inside of diffusers' pipelines count, though pipelines are no modules; averaged copies do not.

    Raises:
        ValueError: if there is none or more than one, listing what there is; if adapters are in
            the way.
    """
    found = at(holder, path) if path else only_one(holder)
    if found is None:
        everything = list(networks(holder))
        raise ValueError(
            f"{type(holder).__name__} has no module {path!r}; say which to prune by module=...:\n"
            + listing([str(each) for each in known(everything) or everything])
        )
    demand_no_adapters(found)
    return found


def only_one(holder: nn.Module) -> Found:
    """Return the only network that may be meant, or raise a ValueError that lists them."""
    everything = list(networks(holder))
    candidates = known(everything) or repeating(everything)
    if len(candidates) != 1:
        raise ValueError(
            f"{type(holder).__name__} holds {len(candidates)} transformers; say which to prune by "
            "module=...:\n" + listing([str(each) for each in candidates])
        )
    return candidates[0]


def at(holder: nn.Module, path: str) -> Found | None:
    """Return the module at a dotted path of attributes, or None; compiled ones are unwrapped."""
    try:
        model = reduce(getattr, path.split("."), holder)
    except AttributeError:
        return None
    return Found(path, uncompiled(model)) if isinstance(model, nn.Module) else None


def uncompiled(model: nn.Module) -> nn.Module:
    """Return what `torch.compile` wraps, whose names and weights are the model's own."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def networks(holder: nn.Module) -> Iterator[Found]:
    """Yield the modules inside, those of pipelines too, each once and no averaged copy."""
    seen = {id(holder)}
    for path, module in [*holder.named_modules(), *inside_pipelines(holder)]:
        model = uncompiled(module)
        if id(model) not in seen and not COPIES.search(path):
            seen.add(id(model))
            yield Found(path, model)


def inside_pipelines(holder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of plain attributes that hold components, as diffusers' pipelines do."""
    for name, value in vars(holder).items():
        components: Any = getattr(value, "components", None)
        if isinstance(value, nn.Module) or not isinstance(components, dict):
            continue
        for part, module in components.items():
            if isinstance(module, nn.Module):
                yield f"{name}.{part}", module


def known(candidates: list[Found]) -> list[Found]:
    """Return those whose class a family names."""
    return [found for found in candidates if family_of(found.model)]


def repeating(candidates: list[Found]) -> list[Found]:
    """Return those that hold a list of blocks themselves, and are in no other one."""
    holding: list[Found] = []
    for found in candidates:
        inside = any(found.path.startswith(f"{other.path}.") for other in holding)
        if not inside and any("." not in name for name, _ in outermost_lists(found.model)):
            holding.append(found)
    return holding


def demand_no_adapters(found: Found) -> None:
    """Raise a ValueError if layers are wrapped by adapters, whose weights would not be pruned."""
    wrapped = [name for name, module in found.model.named_modules() if hasattr(module, "lora_A")]
    if wrapped:
        raise ValueError(
            f"{found} has LoRA adapters on {len(wrapped)} layers, {wrapped[0]} for one: pruning "
            "would not see what they add. Fuse them first: pipeline.fuse_lora() and then "
            "pipeline.unload_lora_weights(), or of a PEFT model merge_and_unload()"
        )
