"""PixArt-alpha and PixArt-Sigma."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ditprune.families.base import Batch
from ditprune.families.conditional import Conditional, within
from ditprune.families.parts import attention, feed_forward, in_blocks
from ditprune.targets import Role


@dataclass(frozen=True)
class PixArt(Conditional):
    """`diffusers.PixArtTransformer2DModel` (https://arxiv.org/abs/2310.00426, 2403.04692).

    Self-attention, cross-attention and MLP of every block are targets. Dense stay `adaln_single`,
    which modulates all blocks at once, the caption's projection, and the final layer. The
    condition is `encoder_hidden_states` [b, text, c], its `encoder_attention_mask` [b, text],
    and of PixArt-alpha at 1024 pixels `resolution` [b, 2] and `aspect_ratio` [b, 1].
    """

    model_classes: ClassVar[tuple[str, ...]] = ("PixArtTransformer2DModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        return in_blocks("transformer_blocks", attention("attn[12]"), feed_forward("ff"))

    def arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Put resolution and aspect ratio where the model looks for them."""
        arguments = super().arguments(model, batch)
        return within(arguments, "added_cond_kwargs", ["resolution", "aspect_ratio"])
