import torch
from diffusers import UNet2DConditionModel
from family_contract import Anatomy, FamilyContract, randomized, some

from ditprune.families import UNet
from ditprune.targets import Role

PART = "transformer_blocks.0."


class TestUNet(FamilyContract):
    family = UNet()
    anatomy = Anatomy(
        roles={
            Role.ATTN_Q: {PART + "attn1.to_q", PART + "attn2.to_q"},
            Role.ATTN_K: {PART + "attn1.to_k", PART + "attn2.to_k"},
            Role.ATTN_V: {PART + "attn1.to_v", PART + "attn2.to_v"},
            Role.ATTN_OUT: {PART + "attn1.to_out.0", PART + "attn2.to_out.0"},
            Role.MLP_UP: {PART + "ff.net.0.proj"},
            Role.MLP_DOWN: {PART + "ff.net.2"},
            Role.PROJECTION: {"proj_in", "proj_out", "conv_shortcut"},
        },
        protected={"time_emb_proj"},
        outside={"time_embedding", "add_embedding", "down_blocks", "mid_block"},
        blocks=[
            *("down_blocks.0.attentions.0", "down_blocks.0.attentions.1"),
            "down_blocks.1.resnets.0",
            *("up_blocks.0.resnets.0", "up_blocks.0.resnets.1"),
            *("up_blocks.1.attentions.0", "up_blocks.1.attentions.1", "up_blocks.1.attentions.2"),
            *("up_blocks.1.resnets.0", "up_blocks.1.resnets.1", "up_blocks.1.resnets.2"),
            "mid_block.attentions.0",
        ],
        heads={2, 4},
        closed=False,
    )

    def build(self, **options):
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=(2, 1),
            cross_attention_dim=12,
            attention_head_dim=(2, 4),
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **options,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=34,
        )

    def latents(self):
        return some(2, 4, 8, 8)

    def condition(self):
        return {
            "encoder_hidden_states": some(2, 5, 12, seed=1),
            "text_embeds": some(2, 10, seed=2),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64], [32.0, 64, 0, 0, 64, 64]]),
            "null_encoder_hidden_states": some(2, 5, 12, seed=3),
            "null_text_embeds": some(2, 10, seed=4),
        }

    def by_hand(self, model, latents, timestep, c):
        added = {"text_embeds": c["text_embeds"], "time_ids": c["time_ids"]}
        return model(latents, timestep, c["encoder_hidden_states"], added_cond_kwargs=added).sample

    def test_linear_projections_are_targets_as_convolutions_are(self):
        models = [randomized(self.build(use_linear_projection=linear)) for linear in (True, False)]
        one, other = ([target.name for target in UNet().targets(model)] for model in models)
        assert one == other
