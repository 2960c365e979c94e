"""Wan 2.1 and 2.2."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ditprune.families.base import config_of
from ditprune.families.conditional import Conditional
from ditprune.families.parts import attention, feed_forward, in_blocks
from ditprune.targets import Role


@dataclass(frozen=True)
class Wan(Conditional):
    """`diffusers.WanTransformer3DModel` (Wan Team 2025, https://arxiv.org/abs/2503.20314).

    Self-attention, cross-attention (to text, and to the image where the model animates one) and
    MLP of every block are targets. Dense stay the embedders of text, image and time, the last of
    which modulates all blocks at once, and the final layer. Latents are [b, c, frames, h, w]; the
    condition is `encoder_hidden_states` [b, text, c] and `encoder_hidden_states_image`.
    """

    model_classes: ClassVar[tuple[str, ...]] = ("WanTransformer3DModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        image = {r"attn2\.add_k_proj": Role.ATTN_K, r"attn2\.add_v_proj": Role.ATTN_V}
        return in_blocks(
            "blocks",
            attention("attn[12]"),
            feed_forward("ffn"),
            image if config_of(model).added_kv_proj_dim else {},
        )
