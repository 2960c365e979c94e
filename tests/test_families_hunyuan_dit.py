import torch
from diffusers import HunyuanDiT2DModel
from family_contract import Anatomy, FamilyContract, some

from ditprune.families import HunyuanDiT
from ditprune.targets import Role


class TestHunyuanDiT(FamilyContract):
    family = HunyuanDiT()
    anatomy = Anatomy(
        roles={
            Role.MODULATION: {"norm1.linear"},
            Role.ATTN_Q: {"attn1.to_q", "attn2.to_q"},
            Role.ATTN_K: {"attn1.to_k", "attn2.to_k"},
            Role.ATTN_V: {"attn1.to_v", "attn2.to_v"},
            Role.ATTN_OUT: {"attn1.to_out.0", "attn2.to_out.0"},
            Role.MLP_UP: {"ff.net.0.proj"},
            Role.MLP_DOWN: {"ff.net.2"},
            Role.PROJECTION: {"skip_linear"},
        },
        outside={"text_embedder", "time_extra_emb", "norm_out", "proj_out"},
        blocks=[f"blocks.{i}" for i in range(4)],
        closed=False,
    )

    def build(self):
        return HunyuanDiT2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            patch_size=2,
            sample_size=4,
            hidden_size=16,
            num_layers=4,
            cross_attention_dim=12,
            cross_attention_dim_t5=16,
            pooled_projection_dim=6,
            text_len=5,
            text_len_t5=6,
        )

    def latents(self):
        return some(2, 4, 4, 4)

    def condition(self):
        return {
            "encoder_hidden_states": some(2, 5, 12, seed=1),
            "text_embedding_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
            "encoder_hidden_states_t5": some(2, 6, 16, seed=2),
            "text_embedding_mask_t5": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]),
            "image_meta_size": torch.tensor([[64.0, 64, 64, 64, 0, 0], [32.0, 64, 32, 64, 0, 0]]),
            "style": torch.tensor([0, 0]),
            "image_rotary_emb": some(2, 4, 8, seed=5).repeat(2, 1, 1, 1),
            "null_encoder_hidden_states": some(2, 5, 12, seed=3),
            "null_text_embedding_mask": torch.tensor([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]),
            "null_encoder_hidden_states_t5": some(2, 6, 16, seed=4),
        }

    def by_hand(self, model, latents, timestep, c):
        cosines, sines = some(2, 4, 8, seed=5)
        return model(
            latents,
            timestep.float(),
            encoder_hidden_states=c["encoder_hidden_states"],
            text_embedding_mask=c["text_embedding_mask"],
            encoder_hidden_states_t5=c["encoder_hidden_states_t5"],
            text_embedding_mask_t5=c["text_embedding_mask_t5"],
            image_meta_size=c["image_meta_size"],
            style=c["style"],
            image_rotary_emb=(cosines, sines),
        ).sample
