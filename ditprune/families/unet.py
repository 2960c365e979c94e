"""U-Nets of Stable Diffusion 1, 2 and XL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ditprune.families.base import Batch
from ditprune.families.conditional import Conditional, within
from ditprune.families.parts import attention, feed_forward
from ditprune.targets import Role

LEVEL = r"(?:(?:down|up)_blocks\.\d+|mid_block)"


@dataclass(frozen=True)
class UNet(Conditional):
    """`diffusers.UNet2DConditionModel` (Rombach et al. 2022, https://arxiv.org/abs/2112.10752;
    SDXL, 2307.01952).

    Targets are the transformer blocks, and the 1x1 convolutions beside them: `proj_in` and
    `proj_out`, which may be linear layers, and the shortcuts of residual blocks. Each member of
    an `attentions` or `resnets` list counts as a block. Dense stay the 3x3 convolutions, the
    embedders, and `time_emb_proj`, by which the timestep enters each residual block. The condition
    is `encoder_hidden_states` [b, text, c], and of SDXL `text_embeds` [b, c] and `time_ids` [b, 6].
    """

    model_classes: ClassVar[tuple[str, ...]] = ("UNet2DConditionModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        inside = {**attention("attn[12]"), **feed_forward("ff")}
        return {
            **{
                rf"(?P<block>{LEVEL}\.attentions\.\d+)\.transformer_blocks\.\d+\.{name}": role
                for name, role in inside.items()
            },
            rf"(?P<block>{LEVEL}\.attentions\.\d+)\.proj_(in|out)": Role.PROJECTION,
            rf"(?P<block>{LEVEL}\.resnets\.\d+)\.conv_shortcut": Role.PROJECTION,
        }

    def arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Call the latents `sample`, and put SDXL's further conditions where it looks for them."""
        arguments = super().arguments(model, batch)
        arguments["sample"] = arguments.pop("hidden_states")
        return within(arguments, "added_cond_kwargs", ["text_embeds", "time_ids"])

    def heard(self, arguments: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Find the latents under the name of `sample`."""
        return super().heard({**arguments, "hidden_states": arguments["sample"], "sample": None})
