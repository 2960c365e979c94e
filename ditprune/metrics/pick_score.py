"""What people would pick of two images of a prompt (Kirstain et al. 2023, arXiv 2305.01569)."""

from collections.abc import Sequence
from functools import cached_property

from jaxtyping import Float64, UInt8
from torch import Tensor

from ditprune.metrics.features import weights_hash
from ditprune.metrics.prompted_clip import PromptedClip


class PickScore(PromptedClip):
    """The cosine of each image with its prompt times the network's logit scale: 20 or so.

    Two images' scores are logits: their difference says how likely one is preferred.
    """

    def __init__(self, weights: str = "yuvalkirstain/PickScore_v1") -> None:
        """Take a hub id or a local folder, with the tokenizer beside the weights."""
        super().__init__(weights)

    @cached_property
    def name(self) -> str:
        """Return `pick_score/`, the hash of the weights and `/logit`."""
        return f"pick_score/{weights_hash(self.network)}/logit"

    def score(
        self, images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]
    ) -> Float64[Tensor, " n"]:
        """Return the score of each image with the prompt of the same place, on the CPU.

        Raises:
            ValueError: if there are not as many prompts as images, or none.
        """
        return self.network.logit_scale.detach().double().exp().cpu() * self.cosines(
            images, prompts
        )
