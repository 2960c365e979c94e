import torch
from diffusers import FluxTransformer2DModel
from family_contract import TIMESTEPS, Anatomy, RepairedFamilyContract, randomized, some

from ditprune.blocks import calibrate_blocks
from ditprune.families import Batch, Flux
from ditprune.layers import target_weights
from ditprune.targets import Role


def small(num_single_layers: int = 2, guidance_embeds: bool = True) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=num_single_layers,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 2, 2),
    )


def ids(num_tokens: int, axis: int) -> torch.Tensor:
    """Positions along one axis, for two samples."""
    positions = torch.zeros(2, num_tokens, 3)
    positions[..., axis] = torch.arange(num_tokens)
    return positions


class TestFlux(RepairedFamilyContract):
    family = Flux()
    anatomy = Anatomy(
        roles={
            Role.MODULATION: {"norm1.linear", "norm1_context.linear", "norm.linear"},
            Role.ATTN_Q: {"attn.to_q", "attn.add_q_proj"},
            Role.ATTN_K: {"attn.to_k", "attn.add_k_proj"},
            Role.ATTN_V: {"attn.to_v", "attn.add_v_proj"},
            Role.ATTN_OUT: {"attn.to_out.0", "attn.to_add_out"},
            Role.MLP_UP: {"ff.net.0.proj", "ff_context.net.0.proj", "proj_mlp"},
            Role.MLP_DOWN: {"ff.net.2", "ff_context.net.2"},
            Role.FUSED_OUT: {"proj_out"},
        },
        outside={"time_text_embed", "context_embedder", "x_embedder", "norm_out", "proj_out"},
        blocks=[
            "transformer_blocks.0",
            "transformer_blocks.1",
            "single_transformer_blocks.0",
            "single_transformer_blocks.1",
        ],
    )

    def build(self):
        return small()

    def latents(self):
        return some(2, 6, 4)

    def condition(self):
        return {
            "encoder_hidden_states": some(2, 5, 12, seed=1),
            "pooled_projections": some(2, 10, seed=2),
            "txt_ids": ids(5, 0),
            "img_ids": ids(6, 1),
            "guidance": torch.tensor([3.5, 2.0]),
            "null_encoder_hidden_states": some(2, 3, 12, seed=3),
            "null_pooled_projections": some(2, 10, seed=4),
            "null_txt_ids": ids(3, 0),
        }

    def by_hand(self, model, latents, timestep, c):
        return model(
            latents,
            c["encoder_hidden_states"],
            c["pooled_projections"],
            timestep / 1000,
            c["img_ids"][0],
            c["txt_ids"][0],
            c["guidance"],
        ).sample

    def test_layers_of_one_input_come_together_in_a_single_block(self, model, one):
        """q, k and v hear what the MLP hears, and are listed behind its output."""
        weights = target_weights(model, self.family)
        walk = calibrate_blocks(model, one, self.family, weights, follow="pruned")
        single = [
            [target.name.removeprefix(f"{target.block_name}.") for target in stats]
            for stats in walk
            if next(iter(stats)).block == 3
        ]
        assert single == [
            ["norm.linear"],
            ["proj_mlp", "attn.to_q", "attn.to_k", "attn.to_v"],
            ["proj_out"],
        ]

    def test_models_without_single_blocks_or_guidance_are_of_the_family(self, batch):
        model = randomized(small(0, guidance_embeds=False))
        assert {target.block for target in Flux().targets(model)} == {0, 1}
        condition = {k: x for k, x in self.given().items() if k != "guidance"}
        assert Flux().predict(model, batch._replace(condition=condition)).shape == (1, 2, 6, 4)

    def test_the_tokens_of_a_reference_image_follow_those_of_the_latents(self, model):
        reference = some(2, 4, 4, seed=7)
        c = {**self.given(), "img_ids": ids(10, 1), "image_latents": reference}
        batch = Batch(self.latents(), TIMESTEPS, c, TIMESTEPS / 1000)
        both = torch.cat([self.latents(), reference], 1)
        expected = self.by_hand(model, both, TIMESTEPS, c)
        assert torch.allclose(self.family.predict(model, batch)[0], expected, atol=1e-5)
