"""Class-conditional Diffusion Transformers of diffusers (DiT-XL/2, digits-dit)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditprune.families.base import Batch, Family, config_of
from ditprune.targets import Role

BLOCK = r"transformer_blocks\.(?P<block>\d+)\."


@dataclass(frozen=True)
class DiT(Family):
    """`diffusers.DiTTransformer2DModel` (Peebles & Xie 2023, https://arxiv.org/abs/2212.09748).

    The five linear layers of every block are targets; embedders, among them the copy of the
    timestep and label embedder in each block (`norm1.emb`), and the final layer stay dense.
    """

    @property
    def layers(self) -> Mapping[str, Role]:
        """The table of diffusers' names."""
        return {
            BLOCK + r"norm1\.linear": Role.MODULATION,
            BLOCK + r"attn1\.to_q": Role.ATTN_Q,
            BLOCK + r"attn1\.to_k": Role.ATTN_K,
            BLOCK + r"attn1\.to_v": Role.ATTN_V,
            BLOCK + r"attn1\.to_out\.0": Role.ATTN_OUT,
            BLOCK + r"ff\.net\.0\.proj": Role.MLP_UP,
            BLOCK + r"ff\.net\.2": Role.MLP_DOWN,
        }

    def num_heads(self, model: nn.Module) -> int:
        """Return `config.num_attention_heads`."""
        return int(config_of(model).num_attention_heads)

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
