"""Z-Image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ditprune.families.base import Batch, config_of
from ditprune.families.conditional import Conditional, named
from ditprune.families.flux import TIMESTEPS
from ditprune.families.parts import attention, in_blocks, modulation
from ditprune.targets import Role


@dataclass(frozen=True)
class ZImage(Conditional):
    """`diffusers.ZImageTransformer2DModel` (Cai et al. 2025, https://arxiv.org/abs/2511.22699).

    Targets are all blocks, those of the refiners of noise and of context included, which are
    whole transformer blocks. Dense stay the embedders and the final layers. The condition is
    `cap_feats` [b, text, c] and, where captions differ in length, `cap_mask` [b, text], true for
    their tokens. The pipeline's scale of guidance counts from 0; its `cfg_normalization` and
    `cfg_truncation`, which are off unless asked for, are not followed.
    """

    model_classes: ClassVar[tuple[str, ...]] = ("ZImageTransformer2DModel",)
    neutral_scale: ClassVar[float] = 0.0

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        mlp = {
            r"feed_forward\.w[13]": Role.MLP_UP,
            r"feed_forward\.w2": Role.MLP_DOWN,
        }
        blocks = "(?:noise_refiner|context_refiner|layers)"
        return {
            **in_blocks(blocks, attention("attention"), mlp),
            **in_blocks("(?:noise_refiner|layers)", modulation(r"adaLN_modulation\.0")),
        }

    def arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """List images, as videos of one frame, and captions; time runs from noise 0 to image 1."""
        condition = dict(named(batch.condition))
        captions = condition.pop("cap_feats")
        masks = condition.pop("cap_mask", captions.new_ones(captions.shape[:2])).bool()
        return {
            "x": list(batch.latents.unsqueeze(2)),
            "t": 1 - batch.timestep / TIMESTEPS,
            "cap_feats": [caption[mask] for caption, mask in zip(captions, masks, strict=True)],
            "patch_size": config_of(model).all_patch_size[0],
            **condition,
        }

    def heard(self, arguments: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return images without frames, and captions padded to the longest with their mask."""
        captions = arguments["cap_feats"]
        mask = [torch.ones(len(caption), dtype=torch.bool) for caption in captions]
        return torch.stack(arguments["x"]).squeeze(2), {
            "cap_feats": pad_sequence(captions, batch_first=True),
            "cap_mask": pad_sequence(mask, batch_first=True),
        }

    def guide(
        self, branches: Float[Tensor, "branches b ..."], scale: float, progress: float
    ) -> Float[Tensor, "b ..."]:
        """Lead from the conditional prediction on, not from the unconditional one."""
        return super().guide(branches, scale + 1, progress)

    def call(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b c h w"]:
        """Turn the prediction round, from the image towards noise, as the scheduler takes it."""
        images = model(**self.arguments(model, batch), return_dict=False)[0]
        return -torch.stack(images).squeeze(2)
