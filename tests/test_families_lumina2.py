import torch
from diffusers import Lumina2Transformer2DModel
from family_contract import Anatomy, FamilyContract, some

from ditprune.families import Lumina2
from ditprune.targets import Role


class TestLumina2(FamilyContract):
    family = Lumina2()
    anatomy = Anatomy(
        roles={
            Role.MODULATION: {"norm1.linear"},
            Role.ATTN_Q: {"attn.to_q"},
            Role.ATTN_K: {"attn.to_k"},
            Role.ATTN_V: {"attn.to_v"},
            Role.ATTN_OUT: {"attn.to_out.0"},
            Role.MLP_UP: {"feed_forward.linear_1", "feed_forward.linear_3"},
            Role.MLP_DOWN: {"feed_forward.linear_2"},
        },
        outside={"x_embedder", "time_caption_embed", "norm_out"},
        blocks=["noise_refiner.0", "context_refiner.0", "layers.0", "layers.1"],
    )

    def build(self):
        return Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(30, 32, 32),
            cap_feat_dim=12,
        )

    def latents(self):
        return some(2, 4, 4, 4)

    def condition(self):
        return {
            "encoder_hidden_states": some(2, 5, 12, seed=1),
            "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool(),
            "null_encoder_hidden_states": some(2, 2, 12, seed=2),
            "null_encoder_attention_mask": torch.ones(2, 2, dtype=torch.bool),
        }

    def by_hand(self, model, latents, timestep, c):
        return -model(
            latents,
            1 - timestep / 1000,
            c["encoder_hidden_states"],
            c["encoder_attention_mask"],
        ).sample
