"""What denoisers of diffusers with text, or other named conditions, have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditprune.families.base import Batch, Condition, Family

NULL = "null_"
"""Begins the name of a tensor which the unconditional branch hears in place of its twin."""


@dataclass(frozen=True)
class Conditional(Family):
    """Denoisers whose condition is named tensors: the names of their forward's arguments.

    With `null_encoder_hidden_states` beside `encoder_hidden_states`, and so on, there are two
    guidance branches; what has no such twin is shared. Without any there is one branch. Every
    tensor begins with the batch, also where diffusers' own has no such dimension: of those the
    first row is taken.
    """

    neutral_scale: ClassVar[float] = 1.0
    """Of guidance, at which the conditional branch alone counts."""

    def with_options(self, options: Mapping[str, Any]) -> "Conditional":
        """Return the family, told those options of a pipeline's call which are its fields too."""
        own = {field.name for field in fields(self)} & options.keys()
        return replace(self, **{name: options[name] for name in own})

    def predict(self, model: nn.Module, batch: Batch) -> Float[Tensor, "branches b ..."]:
        """Call the model with the condition, and where there is one with its null twin.

        Raises:
            ValueError: if the condition is labels, or a null tensor lacks its twin.
        """
        branches = branches_of(batch.condition)
        calls = [self.call(model, batch._replace(condition=branch)) for branch in branches]
        return torch.stack(calls)

    def call(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b ..."]:
        """Call the model once, for one branch."""
        prediction: Tensor = model(**self.arguments(model, batch), return_dict=False)[0]
        return prediction

    def arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Return the arguments of the model's forward; families whose models differ override it."""
        return {
            "hidden_states": batch.latents,
            "timestep": batch.timestep,
            **named(batch.condition),
        }

    def heard(
        self, arguments: Mapping[str, Any]
    ) -> tuple[Float[Tensor, "b ..."], dict[str, Tensor]]:
        """Return latents and condition of a pipeline's call: the inverse of `arguments`."""
        parts = {**arguments, **(arguments.get("added_cond_kwargs") or {})}
        tensors = {name: x for name, x in parts.items() if isinstance(x, Tensor)}
        tensors.pop("timestep", None)
        return tensors.pop("hidden_states"), tensors


def as_long_as(
    prediction: Float[Tensor, "..."], other: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Give the vectors along the last dimension the lengths that they have in another tensor."""
    return prediction * (other.norm(dim=-1, keepdim=True) / prediction.norm(dim=-1, keepdim=True))


def named(condition: Condition) -> Mapping[str, Tensor]:
    """Return named tensors.

    Raises:
        ValueError: if they are labels without a name.
    """
    if isinstance(condition, Tensor):
        raise ValueError(
            f"the condition is a tensor of shape {list(condition.shape)}, and this family takes "
            "named ones: {'encoder_hidden_states': ...}, by the arguments of the model's forward"
        )
    return condition


def branches_of(condition: Condition) -> list[dict[str, Tensor]]:
    """Return what each guidance branch hears, the conditional one first.

    Raises:
        ValueError: if a null tensor lacks its twin.
    """
    tensors = named(condition)
    given = {name: x for name, x in tensors.items() if not name.startswith(NULL)}
    null = {name.removeprefix(NULL): tensors[name] for name in tensors if name not in given}
    if lonely := null.keys() - given.keys():
        raise ValueError(
            f"{', '.join(NULL + name for name in sorted(lonely))} takes the place of nothing; "
            f"the condition has {', '.join(given) or 'nothing'}"
        )
    return [given, {**given, **null}] if null else [given]


def within(arguments: dict[str, Any], name: str, parts: Sequence[str]) -> dict[str, Any]:
    """Put those arguments that diffusers takes inside a dictionary into one of that name."""
    inside = {part: arguments.pop(part) for part in parts if part in arguments}
    return {**arguments, name: inside} if inside else arguments


def unbatched(arguments: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Take the first row of what is alike for all samples, where diffusers has no batch."""
    return {name: x[0] if name in names else x for name, x in arguments.items()}


def with_rotary(
    heard: tuple[Tensor, dict[str, Tensor]], arguments: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add cosines and sines, which are alike for all samples, as one tensor."""
    latents, condition = heard
    if arguments.get("image_rotary_emb") is not None:
        condition["image_rotary_emb"] = torch.stack(list(arguments["image_rotary_emb"]))
    return batched((latents, condition), {"image_rotary_emb": 4})


def batched(
    heard: tuple[Tensor, dict[str, Tensor]], ndim: Mapping[str, int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Repeat for every sample what has fewer dimensions than it has with a batch."""
    latents, condition = heard
    for name, count in ndim.items():
        if name in condition and condition[name].ndim < count:
            condition[name] = condition[name].expand(len(latents), *condition[name].shape)
    return latents, condition
