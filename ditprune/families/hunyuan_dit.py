"""Hunyuan-DiT."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ditprune.families.base import Batch, config_of
from ditprune.families.conditional import Conditional, with_rotary
from ditprune.families.parts import attention, feed_forward, in_blocks, modulation
from ditprune.targets import Role


@dataclass(frozen=True)
class HunyuanDiT(Conditional):
    """`diffusers.HunyuanDiT2DModel` (Li et al. 2024, https://arxiv.org/abs/2405.08748).

    All layers of every block are targets, among them `skip_linear`, by which the later half hears
    the earlier one. Dense stay the embedders and the final layer. The condition is
    `encoder_hidden_states` and `encoder_hidden_states_t5` [b, text, c], `text_embedding_mask`
    and `text_embedding_mask_t5` [b, text], `image_meta_size` [b, 6], `style` [b], and
    `image_rotary_emb` [b, 2, image, head]: cosines and sines.
    """

    model_classes: ClassVar[tuple[str, ...]] = ("HunyuanDiT2DModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        has_skips = config_of(model).num_layers > 2
        return in_blocks(
            "blocks",
            modulation(r"norm1\.linear"),
            attention("attn[12]"),
            feed_forward("ff"),
            {"skip_linear": Role.PROJECTION} if has_skips else {},
        )

    def arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Take the pair of rotary embeddings without their batch; the timestep's dtype matters."""
        arguments = super().arguments(model, batch)
        if "image_rotary_emb" in arguments:
            arguments["image_rotary_emb"] = tuple(arguments["image_rotary_emb"][0])
        return {**arguments, "timestep": batch.timestep.to(batch.latents.dtype)}

    def heard(self, arguments: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Repeat the rotary embeddings for every sample."""
        return with_rotary(super().heard(arguments), arguments)
