import torch
from diffusers import QwenImageTransformer2DModel
from family_contract import TIMESTEPS, Anatomy, FamilyContract, some

from ditprune.families import Batch, QwenImage
from ditprune.targets import Role


class TestQwenImage(FamilyContract):
    family = QwenImage()
    anatomy = Anatomy(
        roles={
            Role.MODULATION: {"img_mod.1", "txt_mod.1"},
            Role.ATTN_Q: {"attn.to_q", "attn.add_q_proj"},
            Role.ATTN_K: {"attn.to_k", "attn.add_k_proj"},
            Role.ATTN_V: {"attn.to_v", "attn.add_v_proj"},
            Role.ATTN_OUT: {"attn.to_out.0", "attn.to_add_out"},
            Role.MLP_UP: {"img_mlp.net.0.proj", "txt_mlp.net.0.proj"},
            Role.MLP_DOWN: {"img_mlp.net.2", "txt_mlp.net.2"},
        },
        outside={"time_text_embed", "img_in", "txt_in", "norm_out", "proj_out"},
        blocks=["transformer_blocks.0", "transformer_blocks.1"],
    )

    def build(self):
        return QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            axes_dims_rope=(4, 2, 2),
        )

    def latents(self):
        return some(2, 6, 16)

    def condition(self):
        return {
            "encoder_hidden_states": some(2, 5, 12, seed=1),
            "encoder_hidden_states_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
            "img_shapes": torch.tensor([[[1, 2, 3]], [[1, 2, 3]]]),
            "null_encoder_hidden_states": some(2, 3, 12, seed=3),
            "null_encoder_hidden_states_mask": torch.ones(2, 3, dtype=torch.long),
        }

    def by_hand(self, model, latents, timestep, c):
        shapes = [(1, 2, 3), (1, 2, 2)][: c["img_shapes"].shape[1]]
        return model(
            latents,
            encoder_hidden_states=c["encoder_hidden_states"],
            encoder_hidden_states_mask=c["encoder_hidden_states_mask"],
            timestep=timestep / 1000,
            img_shapes=[shapes] * 2,
        ).sample

    def test_the_tokens_of_a_reference_image_follow_those_of_the_latents(self, model):
        reference, shapes = some(2, 4, 16, seed=7), torch.tensor([[1, 2, 3], [1, 2, 2]])
        c = {**self.given(), "img_shapes": shapes.repeat(2, 1, 1), "image_latents": reference}
        batch = Batch(self.latents(), TIMESTEPS, c, TIMESTEPS / 1000)
        expected = self.by_hand(model, torch.cat([self.latents(), reference], 1), TIMESTEPS, c)
        assert torch.allclose(self.family.predict(model, batch)[0], expected, atol=1e-5)
