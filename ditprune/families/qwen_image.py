"""Qwen-Image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditprune.families.base import Batch
from ditprune.families.conditional import Conditional, as_long_as
from ditprune.families.flux import TIMESTEPS, with_reference, without_reference
from ditprune.families.parts import (
    added_attention,
    attention,
    feed_forward,
    in_blocks,
    modulation,
)
from ditprune.targets import Role


@dataclass(frozen=True)
class QwenImage(Conditional):
    """`diffusers.QwenImageTransformer2DModel` (Wu et al. 2025, https://arxiv.org/abs/2508.02324).

    Both streams of every block are targets, in the last one too, where no image hears what
    `add_q_proj`, `to_add_out` and `txt_mlp` say. Dense stay the embedders of image, text and time,
    and the final layer. The condition is `encoder_hidden_states` [b, text, c], its
    `encoder_hidden_states_mask` [b, text], and `img_shapes` [b, images, 3], frames, height and
    width in patches: first of the latents [b, image, c], then of each reference image of
    Qwen-Image-Edit, whose tokens are `image_latents` [b, reference, c].
    """

    model_classes: ClassVar[tuple[str, ...]] = ("QwenImageTransformer2DModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        return in_blocks(
            "transformer_blocks",
            modulation(r"(img|txt)_mod\.1"),
            attention("attn"),
            added_attention("attn"),
            feed_forward("(img|txt)_mlp"),
        )

    def arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Append the reference images, list the shapes as numbers, and take time from 0 to 1."""
        arguments = super().arguments(model, batch)
        arguments["timestep"] = batch.timestep.to(batch.latents.dtype) / TIMESTEPS
        shapes = arguments["img_shapes"].long().tolist()
        arguments["img_shapes"] = [[tuple(shape) for shape in each] for each in shapes]
        return with_reference(arguments)

    def guide(
        self, branches: Float[Tensor, "branches b ..."], scale: float, progress: float
    ) -> Float[Tensor, "b ..."]:
        """Give every token of the guided prediction the length of the conditional one's."""
        guided = super().guide(branches, scale, progress)
        return as_long_as(guided, branches[0]) if len(branches) > 1 else guided

    def heard(self, arguments: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Part references from latents; shapes are a tensor, and no mask is one of all tokens."""
        latents, condition = super().heard(arguments)
        text = condition["encoder_hidden_states"]
        condition.setdefault("encoder_hidden_states_mask", text.new_ones(text.shape[:2]).long())
        condition["img_shapes"] = torch.tensor(arguments["img_shapes"])
        return without_reference((latents, condition), int(condition["img_shapes"][0, 0].prod()))
