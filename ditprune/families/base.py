"""What a kind of model must tell: where its layers are and how to call it once."""

import abc
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ditprune.targets import PruneTarget, Role

Condition = Tensor | Mapping[str, Tensor]

POSITIONS = re.compile(r"(txt|img)_ids$|rotary_emb$")
"""Names of named tensors that tell where tokens are."""


class Batch(NamedTuple):
    """Calibration samples: what the denoiser sees at one step of sampling."""

    latents: Float[Tensor, "b ..."]
    """Noised latents, in the model's own layout."""
    timestep: Shaped[Tensor, " b"]
    """As the scheduler counts, mostly from 0 to 1000: families change it to the model's units."""
    condition: Condition
    """Class labels [b], or named tensors [b, ...]."""
    noise_level: Float[Tensor, " b"]
    """Position of the timestep in the noise schedule, in [0, 1): 0 is almost clean."""

    def sample(self, index: int) -> "Batch":
        """Return one sample as a batch of one."""
        one = slice(index, index + 1)
        return Batch(
            latents=self.latents[one],
            timestep=self.timestep[one],
            condition=map_condition(lambda x: x[one], self.condition),
            noise_level=self.noise_level[one],
        )

    def like(self, weight: Tensor) -> "Batch":
        """Move to a weight's device; what is continuous takes its dtype, but for positions."""
        return Batch(
            latents=cast_like(self.latents, weight),
            timestep=self.timestep.to(weight.device),
            condition=condition_like(self.condition, weight),
            noise_level=self.noise_level,
        )


def map_condition(change: Callable[[Tensor], Tensor], condition: Condition) -> Condition:
    """Change the labels, or each of the named tensors."""
    if isinstance(condition, Tensor):
        return change(condition)
    return {name: change(value) for name, value in condition.items()}


def join_conditions(conditions: Sequence[Condition]) -> Condition:
    """Concatenate conditions of one kind."""
    first = conditions[0]
    if isinstance(first, Tensor):
        return torch.cat(conditions)  # type: ignore[arg-type]
    return {name: torch.cat([each[name] for each in conditions]) for name in first}  # type: ignore[index]


def condition_like(condition: Condition, weight: Tensor) -> Condition:
    """Move labels or named tensors to a weight's device, and most of them to its dtype.

    Positions stay as precise as they were given: half precision tells apart no more than the
    first 257 (bfloat16) or 2,049 (float16), and pipelines do not cast tables of rotations.
    """
    if isinstance(condition, Tensor):
        return cast_like(condition, weight)
    return {
        name: x.to(weight.device) if POSITIONS.search(name) else cast_like(x, weight)
        for name, x in condition.items()
    }


def cast_like(x: Tensor, weight: Tensor) -> Tensor:
    """Move to the weight's device; integers, class labels for instance, stay integers."""
    return x.to(weight) if x.is_floating_point() else x.to(weight.device)


@dataclass(frozen=True)
class Family(abc.ABC):
    """Where the prunable layers of a kind of model are, and how to call it once."""

    model_classes: ClassVar[tuple[str, ...]] = ()
    """Names of the classes this family is of, for models whose family nobody tells."""

    include: str = ""
    """Regular expression a layer's name must contain to be a target."""
    ignore: str | None = None
    """Regular expression that excludes the layers whose names contain it."""
    ignore_roles: tuple[Role, ...] = ()
    """Roles to leave dense, `(Role.MODULATION,)` for instance."""

    @abc.abstractmethod
    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        r"""Return the table: patterns of whole module names, and the roles of what they match.

        Group `block` is the whole name of the block: `(?P<block>blocks\.\d+)\.attn\.proj`.
        """

    @abc.abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> Float[Tensor, "branches b ..."]:
        """Call the model once for every guidance branch, the conditional one first.

        What comes back is what the scheduler's `step` takes.
        """

    def guide(
        self,
        branches: Float[Tensor, "branches b ..."],
        scale: float,
        progress: float,
    ) -> Float[Tensor, "b ..."]:
        """Combine the guidance branches: unconditional + scale * (conditional - unconditional).

        Families whose pipelines do it otherwise override it; `progress` is the share of the steps
        of sampling that are taken with this one.
        """
        if len(branches) == 1:
            return branches[0]
        conditional, unconditional = branches
        return unconditional + scale * (conditional - unconditional)

    def num_heads(self, model: nn.Module, layer: str) -> int:
        """Return the heads of the attention nearest to a layer; 1 if there is none."""
        while layer:
            layer = layer.rpartition(".")[0]
            inside = [vars(module) for module in model.get_submodule(layer).modules()]
            heads = [each.get("heads", each.get("num_heads")) for each in inside]
            if found := [number for number in heads if isinstance(number, int)]:
                return found[0]
        return 1

    def targets(self, model: nn.Module) -> list[PruneTarget]:
        """Return the layers to prune, in the order in which the model names them.

        Raises:
            ValueError: if a pattern of the table matches no layer or tells no block, or if no
                layer is left.
        """
        candidates = [name for name, module in model.named_modules() if is_prunable(module)]
        places = self._places(model, candidates)
        blocks = list(dict.fromkeys(block for _, block in places.values()))
        targets = [
            PruneTarget(name, role, blocks.index(block), self.num_heads(model, name), block)
            for name, (role, block) in places.items()
            if self._wants(name, role)
        ]
        if not targets:
            raise ValueError(
                f"{self} leaves nothing to prune. Widen include, ignore or ignore_roles; "
                f"the layers are:\n{listing(candidates)}"
            )
        return targets

    def _places(self, model: nn.Module, candidates: list[str]) -> dict[str, tuple[Role, str]]:
        """Return role and block of the layers that the table lists, in the model's order."""
        table = self.layers(model)
        found = {pattern: matching(pattern, candidates) for pattern in table}
        self._demand_all(found, candidates)
        places = {
            m.string: (table[p], block_of(m)) for p, matches in found.items() for m in matches
        }
        return {name: places[name] for name in candidates if name in places}

    def _wants(self, name: str, role: Role) -> bool:
        ignored = self.ignore is not None and re.search(self.ignore, name)
        included = re.search(self.include, name)
        return bool(included) and not ignored and role not in self.ignore_roles

    def _demand_all(self, found: Mapping[str, list[re.Match[str]]], candidates: list[str]) -> None:
        missing = [pattern for pattern, matches in found.items() if not matches]
        if missing:
            raise ValueError(
                f"{type(self).__name__} expects layers named like {', '.join(missing)}, and the "
                "model has none. Choose the family of your model, or write the table of its "
                f"layers (families.Table); its prunable layers are:\n{listing(candidates)}"
            )


def config_of(model: nn.Module) -> Any:
    """Return the configuration of a diffusers model."""
    return model.config


def is_prunable(module: nn.Module) -> bool:
    """A linear layer, or a convolution that is one: 1x1 and ungrouped."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def matching(pattern: str, names: list[str]) -> list[re.Match[str]]:
    """Return the matches of those names that the pattern matches whole."""
    return [match for name in names if (match := re.fullmatch(pattern, name))]


def block_of(match: re.Match[str]) -> str:
    """Return the name of a layer's block, as the pattern tells it.

    Raises:
        ValueError: if the pattern's group `block` is missing, or not the start of the name.
    """
    block = match.groupdict().get("block")
    if block is None or not f"{match.string}.".startswith(f"{block}."):
        raise ValueError(
            f"the pattern {match.re.pattern} must tell the block of {match.string} by its whole "
            r"name, in a group `block`: (?P<block>blocks\.\d+)\.mlp, for instance"
        )
    return block


def listing(names: list[str], most: int = 40) -> str:
    """Return names as an indented list, cut after `most`."""
    cut = [f"... and {len(names) - most} more"] if len(names) > most else []
    return "\n".join(f"  {name}" for name in [*names[:most], *cut]) or "  (none)"
