"""FLUX.2."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ditprune.families.base import Batch, config_of
from ditprune.families.conditional import Conditional, batched, unbatched
from ditprune.families.flux import TIMESTEPS, num_own_tokens, with_reference, without_reference
from ditprune.families.parts import added_attention, attention, in_blocks
from ditprune.targets import Role


@dataclass(frozen=True)
class Flux2(Conditional):
    """`diffusers.Flux2Transformer2DModel`: FLUX.2 (Black Forest Labs 2025,
    https://bfl.ai/blog/flux-2).

    Targets are both streams of the double blocks, and the two fused layers of the single ones.
    Modulation is shared by all blocks, outside of them, and stays dense, as do the embedders and
    the final layer. The condition is that of `Flux` without `pooled_projections`, its ids four
    numbers each.
    """

    model_classes: ClassVar[tuple[str, ...]] = ("Flux2Transformer2DModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        mlp = {
            r"ff(_context)?\.linear_in": Role.MLP_UP,
            r"ff(_context)?\.linear_out": Role.MLP_DOWN,
        }
        double = in_blocks("transformer_blocks", attention("attn"), added_attention("attn"), mlp)
        single = in_blocks(
            "single_transformer_blocks",
            {r"attn\.to_qkv_mlp_proj": Role.FUSED_IN, r"attn\.to_out": Role.FUSED_OUT},
        )
        return {**double, **(single if config_of(model).num_single_layers else {})}

    def arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Append the reference images, take ids without their batch, and time from 0 to 1."""
        arguments = super().arguments(model, batch)
        arguments["timestep"] = batch.timestep.to(batch.latents.dtype) / TIMESTEPS
        return unbatched(with_reference(arguments), ["txt_ids", "img_ids"])

    def heard(self, arguments: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Part the reference images from the latents, and repeat the ids for every sample."""
        heard = batched(super().heard(arguments), {"txt_ids": 3, "img_ids": 3})
        return without_reference(heard, num_own_tokens(heard[1]["img_ids"]))
