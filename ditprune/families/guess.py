"""A model that no family knows: its table guessed, to be used or to begin with."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from ditprune.families.base import Batch, is_prunable, listing
from ditprune.families.conditional import Conditional
from ditprune.families.table import call_positionally
from ditprune.targets import Role

SMALLEST_SHARE = 0.05
"""Of the largest list's prunable weights, below which a list is not taken for one of blocks."""

NAMES = {
    r"(^|[._])(\w*mod|modulation|ada_?(ln|norm)\w*)([._]|$)|norm\w*\.": Role.MODULATION,
    r"(^|[._])(to_|add_|c_|w)?q(_proj|_linear)?$|query": Role.ATTN_Q,
    r"(^|[._])(to_|add_|c_|w)?k(_proj|_linear)?$|key": Role.ATTN_K,
    r"(^|[._])(to_|add_|c_|w)?v(_proj|_linear)?$|value": Role.ATTN_V,
    r"(^|[._])(to_)?(qkv|kv)(_\w+)?$|in_proj": Role.FUSED_IN,
    r"att\w*\.(.*[._])?(out|proj|proj_out|out_proj|o_proj|wo|to_add_out)(\.0)?$": Role.ATTN_OUT,
}
"""Of layers inside a block, the first that is found; else their shape decides."""


@dataclass(frozen=True)
class Guess(Conditional):
    """Any module: its blocks are what repeats in it, and its layers' roles what names suggest.

    Blocks are the members of each `ModuleList` or `Sequential` of two or more modules of one class,
    small ones beside a much larger one excepted; everything outside them stays dense.
    Names tell modulation and attention, shapes the rest: what widens is MLP_UP, what narrows
    MLP_DOWN. Read `describe` before you trust it. Labels are passed by position, after latents
    and timestep as they are; named conditions as diffusers' models take them.
    """

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the guess."""
        return self.table(model)

    def table(self, model: nn.Module) -> dict[str, Role]:
        """Return the guess, for `Table(table=...)`.

        Raises:
            ValueError: if nothing repeats.
        """
        return {
            rf"(?P<block>{re.escape(name)}\.\d+)\.{re.escape(layer)}": role
            for name, blocks in repeated(model).items()
            for layer, role in roles_in(blocks).items()
        }

    def describe(self, model: nn.Module) -> str:
        """Return the guess as Python source, to copy and to edit.

        Raises:
            ValueError: if nothing repeats.
        """
        lines = [
            f'        r"{pattern}": Role.{role.name},'
            for pattern, role in self.table(model).items()
        ]
        return "\n".join(["Table(", "    table={", *lines, "    },", ")"])

    def predict(self, model: nn.Module, batch: Batch) -> Float[Tensor, "branches b ..."]:
        """Call the model for every guidance branch; with labels there is one."""
        if isinstance(batch.condition, Tensor):
            return call_positionally(model, batch).unsqueeze(0)
        return super().predict(model, batch)


def repeated(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost lists of blocks, by name.

    Raises:
        ValueError: if there are none.
    """
    lists = dict(outermost_lists(model))
    if not lists:
        names = [name for name, module in model.named_modules() if is_prunable(module)]
        raise ValueError(
            f"nothing repeats in {type(model).__name__}: no ModuleList or Sequential of two or "
            "more modules of one class holds its layers. Write their table (families.Table); its "
            f"prunable layers are:\n{listing(names)}"
        )
    sizes = {name: num_prunable(module) for name, module in lists.items()}
    enough = SMALLEST_SHARE * max(sizes.values())
    return {name: module for name, module in lists.items() if sizes[name] >= enough}


def outermost_lists(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the lists of blocks that are in no other one."""
    for name, child in model.named_children():
        if is_list_of_blocks(child):
            yield prefix + name, child
        else:
            yield from outermost_lists(child, f"{prefix}{name}.")


def is_list_of_blocks(module: nn.Module) -> bool:
    """Two or more modules of one class, which are more than a layer and have some to prune."""
    members = list(module.children())
    return (
        isinstance(module, nn.ModuleList | nn.Sequential)
        and len(members) > 1
        and len({type(member) for member in members}) == 1
        and not is_prunable(members[0])
        and num_prunable(module) > 0
    )


def num_prunable(model: nn.Module) -> int:
    """Return the number of weights in linear layers and 1x1 convolutions."""
    return sum(layer.get_parameter("weight").numel() for _, layer in prunable_in(model))


def prunable_in(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that can be pruned, with their names."""
    return ((name, layer) for name, layer in module.named_modules() if is_prunable(layer))


def roles_in(blocks: nn.Module) -> dict[str, Role]:
    """Return the role of every layer of some blocks, by its name inside of them."""
    return {
        name: guess(name, layer)
        for block in blocks.children()
        for name, layer in prunable_in(block)
    }


def guess(name: str, layer: nn.Module) -> Role:
    """Return the role that a layer's name suggests, or else its shape."""
    for pattern, role in NAMES.items():
        if re.search(pattern, name, re.IGNORECASE):
            return role
    num_outputs, num_inputs = layer.get_parameter("weight").shape[:2]
    if num_outputs == num_inputs:
        return Role.PROJECTION
    return Role.MLP_UP if num_outputs > num_inputs else Role.MLP_DOWN
