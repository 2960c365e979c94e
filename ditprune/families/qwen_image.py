"""Qwen-Image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ditprune.families.base import Batch
from ditprune.families.conditional import Conditional
from ditprune.families.flux import TIMESTEPS, with_reference
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
        arguments["timestep"] = batch.timestep / TIMESTEPS
        shapes = arguments["img_shapes"].long().tolist()
        arguments["img_shapes"] = [[tuple(shape) for shape in each] for each in shapes]
        return with_reference(arguments)

    def heard(self, arguments: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the shapes as a tensor, and a mask also where the pipeline left it out."""
        latents, condition = super().heard(arguments)
        text = condition["encoder_hidden_states"]
        condition.setdefault("encoder_hidden_states_mask", text.new_ones(text.shape[:2]).long())
        return latents, {**condition, "img_shapes": torch.tensor(arguments["img_shapes"])}
