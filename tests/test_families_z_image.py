import torch
from diffusers import ZImageTransformer2DModel
from family_contract import Anatomy, FamilyContract, some

from ditprune.families import ZImage
from ditprune.targets import Role


class TestZImage(FamilyContract):
    family = ZImage()
    anatomy = Anatomy(
        roles={
            Role.MODULATION: {"adaLN_modulation.0"},
            Role.ATTN_Q: {"attention.to_q"},
            Role.ATTN_K: {"attention.to_k"},
            Role.ATTN_V: {"attention.to_v"},
            Role.ATTN_OUT: {"attention.to_out.0"},
            Role.MLP_UP: {"feed_forward.w1", "feed_forward.w3"},
            Role.MLP_DOWN: {"feed_forward.w2"},
        },
        outside={"all_x_embedder", "all_final_layer", "t_embedder", "cap_embedder"},
        blocks=[
            *("noise_refiner.0", "noise_refiner.1"),
            *("context_refiner.0", "context_refiner.1"),
            *("layers.0", "layers.1"),
        ],
    )

    def build(self):
        return ZImageTransformer2DModel(
            in_channels=4,
            dim=16,
            n_layers=2,
            n_refiner_layers=2,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=12,
            axes_dims=[4, 2, 2],
            axes_lens=[64, 32, 32],
        )

    def latents(self):
        return some(2, 4, 4, 4)

    def condition(self):
        return {
            "cap_feats": some(2, 5, 12, seed=1),
            "cap_mask": torch.tensor([[True] * 5, [True, True, True, False, False]]),
            "null_cap_feats": some(2, 2, 12, seed=2),
            "null_cap_mask": torch.ones(2, 2, dtype=torch.bool),
        }

    def by_hand(self, model, latents, timestep, c):
        images = model(
            [image.unsqueeze(1) for image in latents],
            (1000 - timestep) / 1000,
            [each[mask] for each, mask in zip(c["cap_feats"], c["cap_mask"], strict=True)],
        ).sample
        return torch.stack([-image.squeeze(1) for image in images])
