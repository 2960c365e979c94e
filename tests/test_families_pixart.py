import torch
from diffusers import PixArtTransformer2DModel
from family_contract import Anatomy, FamilyContract, some

from ditprune.families import PixArt
from ditprune.targets import Role


class TestPixArt(FamilyContract):
    family = PixArt()
    anatomy = Anatomy(
        roles={
            Role.ATTN_Q: {"attn1.to_q", "attn2.to_q"},
            Role.ATTN_K: {"attn1.to_k", "attn2.to_k"},
            Role.ATTN_V: {"attn1.to_v", "attn2.to_v"},
            Role.ATTN_OUT: {"attn1.to_out.0", "attn2.to_out.0"},
            Role.MLP_UP: {"ff.net.0.proj"},
            Role.MLP_DOWN: {"ff.net.2"},
        },
        outside={"proj_out", "adaln_single", "caption_projection"},
        blocks=["transformer_blocks.0", "transformer_blocks.1"],
    )

    def build(self):
        return PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=24,
            sample_size=8,
            caption_channels=12,
            use_additional_conditions=True,
        )

    def latents(self):
        return some(2, 4, 8, 8)

    def condition(self):
        return {
            "encoder_hidden_states": some(2, 5, 12, seed=1),
            "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
            "resolution": torch.tensor([[64.0, 64.0], [32.0, 64.0]]),
            "aspect_ratio": torch.tensor([[1.0], [0.5]]),
            "null_encoder_hidden_states": some(2, 3, 12, seed=2),
            "null_encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        }

    def by_hand(self, model, latents, timestep, c):
        return model(
            latents,
            encoder_hidden_states=c["encoder_hidden_states"],
            encoder_attention_mask=c["encoder_attention_mask"],
            timestep=timestep,
            added_cond_kwargs={"resolution": c["resolution"], "aspect_ratio": c["aspect_ratio"]},
        ).sample
