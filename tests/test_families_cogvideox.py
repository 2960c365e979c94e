from diffusers import CogVideoXTransformer3DModel
from family_contract import Anatomy, FamilyContract, some

from ditprune.families import CogVideoX
from ditprune.targets import Role


class TestCogVideoX(FamilyContract):
    family = CogVideoX()
    anatomy = Anatomy(
        roles={
            Role.MODULATION: {"norm1.linear", "norm2.linear"},
            Role.ATTN_Q: {"attn1.to_q"},
            Role.ATTN_K: {"attn1.to_k"},
            Role.ATTN_V: {"attn1.to_v"},
            Role.ATTN_OUT: {"attn1.to_out.0"},
            Role.MLP_UP: {"ff.net.0.proj"},
            Role.MLP_DOWN: {"ff.net.2"},
        },
        outside={"patch_embed", "time_embedding", "norm_out", "proj_out"},
        blocks=["transformer_blocks.0", "transformer_blocks.1"],
    )

    def build(self):
        return CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=12,
            num_layers=2,
            sample_width=4,
            sample_height=4,
            sample_frames=5,
            max_text_seq_length=5,
            use_rotary_positional_embeddings=True,
        )

    def latents(self):
        return some(2, 2, 4, 4, 4)

    def condition(self):
        return {
            "encoder_hidden_states": some(2, 5, 12, seed=1),
            "image_rotary_emb": some(2, 8, 8, seed=3).repeat(2, 1, 1, 1),
            "null_encoder_hidden_states": some(2, 5, 12, seed=2),
        }

    def by_hand(self, model, latents, timestep, c):
        cosines, sines = some(2, 8, 8, seed=3)
        return model(
            latents, c["encoder_hidden_states"], timestep, image_rotary_emb=(cosines, sines)
        ).sample
