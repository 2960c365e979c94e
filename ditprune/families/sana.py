"""SANA."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ditprune.families.base import Batch, config_of
from ditprune.families.conditional import Conditional
from ditprune.families.parts import attention, in_blocks
from ditprune.targets import Role


@dataclass(frozen=True)
class Sana(Conditional):
    """`diffusers.SanaTransformer2DModel` (Xie et al. 2024, https://arxiv.org/abs/2410.10629).

    Targets are linear self-attention, cross-attention, and of the Mix-FFN the two 1x1
    convolutions, the first of which holds the gate. Dense stay its depthwise convolution, the
    patch embedder (1x1 too), `time_embed`, which modulates all blocks at once, the caption's
    projection, and the final layer. The condition is `encoder_hidden_states` [b, text, c], its
    `encoder_attention_mask` [b, text], and of SANA-Sprint `guidance` [b].
    """

    model_classes: ClassVar[tuple[str, ...]] = ("SanaTransformer2DModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        mix_ffn = {r"ff\.conv_inverted": Role.MLP_UP, r"ff\.conv_point": Role.MLP_DOWN}
        return in_blocks("transformer_blocks", attention("attn[12]"), mix_ffn)

    def arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Scale the timestep as the model's configuration says."""
        arguments = super().arguments(model, batch)
        scale = config_of(model).get("timestep_scale", 1.0)
        return {**arguments, "timestep": batch.timestep * scale}
