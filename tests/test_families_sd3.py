from diffusers import SD3Transformer2DModel
from family_contract import Anatomy, RepairedFamilyContract, randomized, some

from ditprune.families import SD3
from ditprune.targets import Role


def small(**options) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
        **options,
    )


class TestSD3(RepairedFamilyContract):
    family = SD3()
    anatomy = Anatomy(
        roles={
            Role.MODULATION: {"norm1.linear", "norm1_context.linear"},
            Role.ATTN_Q: {"attn.to_q", "attn.add_q_proj", "attn2.to_q"},
            Role.ATTN_K: {"attn.to_k", "attn.add_k_proj", "attn2.to_k"},
            Role.ATTN_V: {"attn.to_v", "attn.add_v_proj", "attn2.to_v"},
            Role.ATTN_OUT: {"attn.to_out.0", "attn.to_add_out", "attn2.to_out.0"},
            Role.MLP_UP: {"ff.net.0.proj", "ff_context.net.0.proj"},
            Role.MLP_DOWN: {"ff.net.2", "ff_context.net.2"},
        },
        outside={"time_text_embed", "context_embedder", "norm_out", "proj_out"},
        blocks=[f"transformer_blocks.{i}" for i in range(3)],
        unheard={"transformer_blocks.2.attn.add_q_proj"},
    )

    def build(self):
        return small(dual_attention_layers=(0,), qk_norm="rms_norm")

    def latents(self):
        return some(2, 4, 8, 8)

    def condition(self):
        return {
            "encoder_hidden_states": some(2, 5, 12, seed=1),
            "pooled_projections": some(2, 10, seed=2),
            "null_encoder_hidden_states": some(2, 5, 12, seed=3),
            "null_pooled_projections": some(2, 10, seed=4),
        }

    def by_hand(self, model, latents, timestep, c):
        return model(latents, c["encoder_hidden_states"], c["pooled_projections"], timestep).sample

    def test_the_last_block_has_no_output_for_the_text(self, model):
        names = {t.name for t in self.family.targets(model) if t.block == 2}
        assert not any("ff_context" in name or "to_add_out" in name for name in names)
        assert "transformer_blocks.2.attn.add_q_proj" in names

    def test_models_without_second_attention_have_none_to_prune(self):
        names = {target.name for target in SD3().targets(randomized(small()))}
        assert len(names) == 14 + 14 + 11
        assert not any("attn2" in name for name in names)
