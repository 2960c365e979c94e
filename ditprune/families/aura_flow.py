"""AuraFlow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ditprune.families.base import Batch, config_of
from ditprune.families.conditional import Conditional
from ditprune.families.flux import TIMESTEPS
from ditprune.families.parts import added_attention, attention, in_blocks, modulation
from ditprune.targets import Role


@dataclass(frozen=True)
class AuraFlow(Conditional):
    """`diffusers.AuraFlowTransformer2DModel` (https://huggingface.co/fal/AuraFlow).

    Targets are both streams of the joint blocks, and the single blocks. Dense stay the embedders
    and the final layer. The condition is `encoder_hidden_states` [b, text, c].
    """

    model_classes: ClassVar[tuple[str, ...]] = ("AuraFlowTransformer2DModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        joint = in_blocks(
            "joint_transformer_blocks",
            modulation(r"norm1(_context)?\.linear"),
            attention("attn"),
            added_attention("attn"),
            gated_mlp("ff(_context)?"),
        )
        single = in_blocks(
            "single_transformer_blocks",
            modulation(r"norm1\.linear"),
            attention("attn"),
            gated_mlp("ff"),
        )
        return {**joint, **(single if config_of(model).num_single_dit_layers else {})}

    def arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Take time from 0 to 1."""
        return {**super().arguments(model, batch), "timestep": batch.timestep / TIMESTEPS}


def gated_mlp(name: str) -> dict[str, Role]:
    """Return the gate, the values and the output of an MLP."""
    return {
        rf"{name}\.linear_[12]": Role.MLP_UP,
        rf"{name}\.out_projection": Role.MLP_DOWN,
    }
