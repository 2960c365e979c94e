import torch
from diffusers import Flux2Transformer2DModel
from family_contract import Anatomy, FamilyContract, some

from ditprune.families import Flux2
from ditprune.targets import Role


class TestFlux2(FamilyContract):
    family = Flux2()
    anatomy = Anatomy(
        roles={
            Role.ATTN_Q: {"attn.to_q", "attn.add_q_proj"},
            Role.ATTN_K: {"attn.to_k", "attn.add_k_proj"},
            Role.ATTN_V: {"attn.to_v", "attn.add_v_proj"},
            Role.ATTN_OUT: {"attn.to_out.0", "attn.to_add_out"},
            Role.MLP_UP: {"ff.linear_in", "ff_context.linear_in"},
            Role.MLP_DOWN: {"ff.linear_out", "ff_context.linear_out"},
            Role.FUSED_IN: {"attn.to_qkv_mlp_proj"},
            Role.FUSED_OUT: {"attn.to_out"},
        },
        outside={
            "time_guidance_embed",
            "double_stream_modulation_img",
            "double_stream_modulation_txt",
            "single_stream_modulation",
            "x_embedder",
            "context_embedder",
            "norm_out",
            "proj_out",
        },
        blocks=[
            "transformer_blocks.0",
            "transformer_blocks.1",
            "single_transformer_blocks.0",
            "single_transformer_blocks.1",
        ],
    )

    def build(self):
        return Flux2Transformer2DModel(
            in_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            timestep_guidance_channels=8,
            axes_dims_rope=(2, 2, 2, 2),
        )

    def latents(self):
        return some(2, 6, 4)

    def condition(self):
        return {
            "encoder_hidden_states": some(2, 5, 12, seed=1),
            "txt_ids": torch.arange(5.0).view(1, 5, 1)
            * torch.tensor([0.0, 0, 0, 1]).repeat(2, 1, 1),
            "img_ids": torch.arange(6.0).view(1, 6, 1)
            * torch.tensor([0.0, 1, 0, 0]).repeat(2, 1, 1),
            "guidance": torch.tensor([3.5, 2.0]),
            "null_encoder_hidden_states": some(2, 5, 12, seed=3),
        }

    def by_hand(self, model, latents, timestep, c):
        return model(
            latents,
            c["encoder_hidden_states"],
            timestep / 1000,
            c["img_ids"][0],
            c["txt_ids"][0],
            c["guidance"],
        ).sample
