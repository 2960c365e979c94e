"""Class-conditional Diffusion Transformers of diffusers (DiT-XL/2, digits-dit)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditprune.families.base import Batch, Family, config_of
from ditprune.families.parts import attention, feed_forward, in_blocks, modulation
from ditprune.targets import Role


@dataclass(frozen=True)
class DiT(Family):
    """`diffusers.DiTTransformer2DModel` (Peebles & Xie 2023, https://arxiv.org/abs/2212.09748).

    The five linear layers of every block are targets; embedders, among them the copy of the
    timestep and label embedder in each block (`norm1.emb`), and the final layer stay dense.
    """

    model_classes: ClassVar[tuple[str, ...]] = ("DiTTransformer2DModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        return in_blocks(
            "transformer_blocks",
            modulation(r"norm1\.linear"),
            attention("attn1"),
            feed_forward("ff"),
        )

    def predict(self, model: nn.Module, batch: Batch) -> Float[Tensor, "2 b c h w"]:
        """Predict with the class asked for, and with the null class of guidance."""
        assert isinstance(batch.condition, Tensor)
        null = torch.full_like(batch.condition, config_of(model).num_embeds_ada_norm)
        prediction = model(
            torch.cat([batch.latents, batch.latents]),
            timestep=torch.cat([batch.timestep, batch.timestep]),
            class_labels=torch.cat([batch.condition, null]),
        ).sample
        return torch.stack(prediction.chunk(2))
