import torch
from diffusers import SanaTransformer2DModel
from family_contract import Anatomy, RepairedFamilyContract, randomized, some

import ditprune
from ditprune.families import Sana
from ditprune.granularity import Layer
from ditprune.recipe import Recipe
from ditprune.saliency import Energy
from ditprune.targets import Role


class TestSana(RepairedFamilyContract):
    family = Sana()
    anatomy = Anatomy(
        roles={
            Role.ATTN_Q: {"attn1.to_q", "attn2.to_q"},
            Role.ATTN_K: {"attn1.to_k", "attn2.to_k"},
            Role.ATTN_V: {"attn1.to_v", "attn2.to_v"},
            Role.ATTN_OUT: {"attn1.to_out.0", "attn2.to_out.0"},
            Role.MLP_UP: {"ff.conv_inverted"},
            Role.MLP_DOWN: {"ff.conv_point"},
        },
        outside={"patch_embed", "time_embed", "caption_projection", "proj_out"},
        blocks=["transformer_blocks.0", "transformer_blocks.1"],
        heads={2, 4},
    )

    def build(self):
        return SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=4,
            cross_attention_head_dim=4,
            cross_attention_dim=16,
            caption_channels=12,
            sample_size=4,
            timestep_scale=0.5,
        )

    def latents(self):
        return some(2, 4, 4, 6)

    def condition(self):
        return {
            "encoder_hidden_states": some(2, 5, 12, seed=1),
            "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
            "null_encoder_hidden_states": some(2, 5, 12, seed=2),
            "null_encoder_attention_mask": torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]),
        }

    def by_hand(self, model, latents, timestep, c):
        return model(
            latents,
            c["encoder_hidden_states"],
            timestep * 0.5,
            encoder_attention_mask=c["encoder_attention_mask"],
        ).sample

    def test_cross_attention_has_heads_of_its_own(self, model):
        cross = {t.num_heads for t in self.family.targets(model) if "attn2" in t.name}
        assert cross == {4}

    def test_depthwise_convolutions_lose_nothing(self, model, batch):
        before = randomized(self.build()).transformer_blocks[0].ff.conv_depth.weight
        ditprune.prune(model, [batch], family=Sana(), recipe=Recipe(Energy(), Layer(), 0.5))
        assert torch.equal(model.transformer_blocks[0].ff.conv_depth.weight, before)
