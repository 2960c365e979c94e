"""Lumina-Image 2.0."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from ditprune.families.base import Batch
from ditprune.families.conditional import Conditional, as_long_as
from ditprune.families.flux import TIMESTEPS
from ditprune.families.parts import attention, in_blocks, modulation
from ditprune.targets import Role


@dataclass(frozen=True)
class Lumina2(Conditional):
    """`diffusers.Lumina2Transformer2DModel` (Qin et al. 2025, https://arxiv.org/abs/2503.21758).

    Targets are all blocks, those of the refiners of noise and of context included, which are
    whole transformer blocks. Dense stay the embedders and the final layer. The condition is
    `encoder_hidden_states` [b, text, c] and its `encoder_attention_mask` [b, text].
    """

    cfg_normalization: bool = True
    """Let guidance change the direction of the prediction's rows alone, as the pipeline does."""
    cfg_trunc_ratio: float = 1.0
    """Share of the steps that are guided: the first ones."""

    model_classes: ClassVar[tuple[str, ...]] = ("Lumina2Transformer2DModel",)

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table of diffusers' names."""
        mlp = {
            r"feed_forward\.linear_[13]": Role.MLP_UP,
            r"feed_forward\.linear_2": Role.MLP_DOWN,
        }
        blocks = "(?:noise_refiner|context_refiner|layers)"
        return {
            **in_blocks(blocks, attention("attn"), mlp),
            **in_blocks("(?:noise_refiner|layers)", modulation(r"norm1\.linear")),
        }

    def arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Let time run from noise at 0 to the image at 1."""
        arguments = super().arguments(model, batch)
        return {**arguments, "timestep": 1 - batch.timestep / TIMESTEPS}

    def guide(
        self, branches: Float[Tensor, "branches b ..."], scale: float, progress: float
    ) -> Float[Tensor, "b ..."]:
        """Guide the first steps alone, if told so, and keep the lengths of the image's rows."""
        if progress > self.cfg_trunc_ratio or len(branches) == 1:
            return branches[0]
        guided = super().guide(branches, scale, progress)
        return as_long_as(guided, branches[0]) if self.cfg_normalization else guided

    def call(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b c h w"]:
        """Turn the prediction round, from the image towards noise, as the scheduler takes it."""
        return -super().call(model, batch)
