from diffusers import AuraFlowTransformer2DModel
from family_contract import Anatomy, FamilyContract, some

from ditprune.families import AuraFlow
from ditprune.targets import Role


class TestAuraFlow(FamilyContract):
    family = AuraFlow()
    anatomy = Anatomy(
        roles={
            Role.MODULATION: {"norm1.linear", "norm1_context.linear"},
            Role.ATTN_Q: {"attn.to_q", "attn.add_q_proj"},
            Role.ATTN_K: {"attn.to_k", "attn.add_k_proj"},
            Role.ATTN_V: {"attn.to_v", "attn.add_v_proj"},
            Role.ATTN_OUT: {"attn.to_out.0", "attn.to_add_out"},
            Role.MLP_UP: {
                *("ff.linear_1", "ff.linear_2"),
                *("ff_context.linear_1", "ff_context.linear_2"),
            },
            Role.MLP_DOWN: {"ff.out_projection", "ff_context.out_projection"},
        },
        outside={"pos_embed", "context_embedder", "time_step_proj", "norm_out", "proj_out"},
        blocks=[
            "joint_transformer_blocks.0",
            "single_transformer_blocks.0",
            "single_transformer_blocks.1",
        ],
    )

    def build(self):
        return AuraFlowTransformer2DModel(
            sample_size=8,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            out_channels=4,
            pos_embed_max_size=64,
        )

    def latents(self):
        return some(2, 4, 8, 8)

    def condition(self):
        return {
            "encoder_hidden_states": some(2, 5, 12, seed=1),
            "null_encoder_hidden_states": some(2, 5, 12, seed=2),
        }

    def by_hand(self, model, latents, timestep, c):
        return model(latents, c["encoder_hidden_states"], timestep / 1000).sample
