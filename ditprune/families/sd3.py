"""Stable Diffusion 3 and 3.5."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ditprune.families.base import config_of
from ditprune.families.conditional import Conditional
from ditprune.families.parts import (
    added_attention,
    attention,
    feed_forward,
    in_blocks,
    modulation,
)
from ditprune.targets import Role


@dataclass(frozen=True)
class SD3(Conditional):
    """`diffusers.SD3Transformer2DModel` (Esser et al. 2024, https://arxiv.org/abs/2403.03206).

    Both streams of every block are targets; SD3.5-medium has a second attention, to the image
    alone, in some blocks. The last block has no MLP and no attention output for the text: its
    `add_q_proj` is there, and no image hears of it. Dense stay the embedders of text, time and
    patches, and the final layer. The condition is `encoder_hidden_states` [b, text, c] and
    `pooled_projections` [b, c].
    """

    model_classes: ClassVar[tuple[str, ...]] = ("SD3Transformer2DModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        dual = attention("attn2") if config_of(model).dual_attention_layers else {}
        return in_blocks(
            "transformer_blocks",
            modulation(r"norm1(_context)?\.linear"),
            attention("attn"),
            added_attention("attn"),
            dual,
            feed_forward("ff(_context)?"),
        )
