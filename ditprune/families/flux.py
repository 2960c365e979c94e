"""FLUX.1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ditprune.families.base import Batch, config_of
from ditprune.families.conditional import Conditional, batched, unbatched
from ditprune.families.parts import (
    added_attention,
    attention,
    feed_forward,
    in_blocks,
    modulation,
    query_key_value,
)
from ditprune.targets import Role

TIMESTEPS = 1000
"""Of the schedule: the models of this kind take timesteps from 0 to 1."""


@dataclass(frozen=True)
class Flux(Conditional):
    """`diffusers.FluxTransformer2DModel`: FLUX.1 dev, schnell and Kontext (Black Forest Labs,
    https://arxiv.org/abs/2506.15742).

    Targets are both streams of the double blocks, and of the single ones `proj_mlp`, q, k, v and
    `proj_out`, which reads attention and MLP at once. Dense stay the embedders of image, text,
    time and guidance, and the final layer. The condition is `encoder_hidden_states` [b, text, c],
    `pooled_projections` [b, c], `txt_ids` [b, text, 3], `img_ids` [b, image, 3] and of the
    distilled dev and Kontext `guidance` [b]. Kontext's `image_latents` [b, reference, c] are
    appended to the latents [b, image, c]; `img_ids` are then those of both.
    """

    model_classes: ClassVar[tuple[str, ...]] = ("FluxTransformer2DModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        single = in_blocks(
            "single_transformer_blocks",
            modulation(r"norm\.linear"),
            {"proj_mlp": Role.MLP_UP, "proj_out": Role.FUSED_OUT},
            query_key_value("attn"),
        )
        return {**double_blocks(), **(single if config_of(model).num_single_layers else {})}

    def arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Append the reference image, take ids without their batch, and time from 0 to 1."""
        arguments = super().arguments(model, batch)
        arguments["timestep"] = batch.timestep.to(batch.latents.dtype) / TIMESTEPS
        return unbatched(with_reference(arguments), ["txt_ids", "img_ids"])

    def heard(self, arguments: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Part the reference image from the latents, and repeat the ids for every sample."""
        heard = batched(super().heard(arguments), {"txt_ids": 3, "img_ids": 3})
        return without_reference(heard, num_own_tokens(heard[1]["img_ids"]))


def double_blocks() -> dict[str, Role]:
    """Return the table of FLUX.1's double blocks."""
    return in_blocks(
        "transformer_blocks",
        modulation(r"norm1(_context)?\.linear"),
        attention("attn"),
        added_attention("attn"),
        feed_forward("ff(_context)?"),
    )


def with_reference(arguments: dict[str, Any]) -> dict[str, Any]:
    """Append the tokens of a reference image, `image_latents`, to those that are denoised."""
    reference = arguments.pop("image_latents", None)
    if reference is not None:
        arguments["hidden_states"] = torch.cat([arguments["hidden_states"], reference], 1)
    return arguments


def without_reference(
    heard: tuple[Tensor, dict[str, Tensor]], num_own_tokens: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Undo `with_reference`: latents come first."""
    tokens, condition = heard
    if tokens.shape[1] > num_own_tokens:
        condition["image_latents"] = tokens[:, num_own_tokens:]
    return tokens[:, :num_own_tokens], condition


def num_own_tokens(img_ids: Shaped[Tensor, "b tokens axes"]) -> int:
    """Return how many tokens are denoised: along the first axis those are at 0, references not."""
    return int((img_ids[0, :, 0] == 0).sum())
