"""How well images fit their prompts (Hessel et al. 2021, arXiv 2104.08718), by CLIP."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath

from jaxtyping import Float64, UInt8
from torch import Tensor

from ditprune.metrics.features import weights_hash
from ditprune.metrics.prompted_clip import PromptedClip


class ClipScore(PromptedClip):
    """100 times CLIP's cosine of each image with its prompt; negative ones stay negative.

    Published numbers are of several networks: L/14 (the default), B/16 and B/32, which the name
    tells apart. OBS-Diff reports a hundredth of this.
    """

    def __init__(self, weights: str = "openai/clip-vit-large-patch14") -> None:
        """Take a hub id or a local folder, with the tokenizer beside the weights."""
        super().__init__(weights)

    @cached_property
    def name(self) -> str:
        """Return `clip_score/`, the network's name, the hash of its weights and `/x100`."""
        network = PurePosixPath(self.weights).name
        return f"clip_score/{network}/{weights_hash(self.network)}/x100"

    def score(
        self, images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]
    ) -> Float64[Tensor, " n"]:
        """Return the score of each image with the prompt of the same place, on the CPU.

        Raises:
            ValueError: if there are not as many prompts as images, or none.
        """
        return 100 * self.cosines(images, prompts)
