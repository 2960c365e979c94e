"""CogVideoX."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ditprune.families.base import Batch
from ditprune.families.conditional import Conditional, with_rotary
from ditprune.families.parts import attention, feed_forward, in_blocks, modulation
from ditprune.targets import Role


@dataclass(frozen=True)
class CogVideoX(Conditional):
    """`diffusers.CogVideoXTransformer3DModel` (Yang et al. 2024, https://arxiv.org/abs/2408.06072).

    All layers of every block are targets; text and video pass the same ones. Dense stay the
    embedders and the final layer. Latents are [b, frames, c, h, w]; the condition is
    `encoder_hidden_states` [b, text, c] and, but for the 2B model, `image_rotary_emb`
    [b, 2, video, head]: cosines and sines.
    """

    model_classes: ClassVar[tuple[str, ...]] = ("CogVideoXTransformer3DModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        return in_blocks(
            "transformer_blocks",
            modulation(r"norm[12]\.linear"),
            attention("attn1"),
            feed_forward("ff"),
        )

    def arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Take the pair of rotary embeddings without their batch."""
        arguments = super().arguments(model, batch)
        if "image_rotary_emb" in arguments:
            arguments["image_rotary_emb"] = tuple(arguments["image_rotary_emb"][0])
        return arguments

    def heard(self, arguments: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Repeat the rotary embeddings for every sample."""
        return with_rotary(super().heard(arguments), arguments)
