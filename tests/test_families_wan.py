from diffusers import WanTransformer3DModel
from family_contract import Anatomy, FamilyContract, randomized, some

from ditprune.families import Wan
from ditprune.targets import Role


def small(**options) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=8,
        ffn_dim=32,
        num_layers=2,
        **options,
    )


class TestWan(FamilyContract):
    family = Wan()
    anatomy = Anatomy(
        roles={
            Role.ATTN_Q: {"attn1.to_q", "attn2.to_q"},
            Role.ATTN_K: {"attn1.to_k", "attn2.to_k", "attn2.add_k_proj"},
            Role.ATTN_V: {"attn1.to_v", "attn2.to_v", "attn2.add_v_proj"},
            Role.ATTN_OUT: {"attn1.to_out.0", "attn2.to_out.0"},
            Role.MLP_UP: {"ffn.net.0.proj"},
            Role.MLP_DOWN: {"ffn.net.2"},
        },
        outside={"condition_embedder", "proj_out"},
        blocks=["blocks.0", "blocks.1"],
    )

    def build(self):
        return small(added_kv_proj_dim=24, image_dim=10)

    def latents(self):
        return some(2, 4, 2, 4, 4)

    def condition(self):
        return {
            "encoder_hidden_states": some(2, 512, 12, seed=1),
            "encoder_hidden_states_image": some(2, 7, 10, seed=3),
            "null_encoder_hidden_states": some(2, 512, 12, seed=2),
        }

    def by_hand(self, model, latents, timestep, c):
        return model(
            latents, timestep, c["encoder_hidden_states"], c["encoder_hidden_states_image"]
        ).sample

    def test_models_that_make_videos_of_text_alone_have_no_added_layers(self):
        names = {target.name for target in Wan().targets(randomized(small()))}
        assert not any("add_" in name for name in names)
