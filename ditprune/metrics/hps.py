"""What people prefer of two images of a prompt (Wu et al. 2023, arXiv 2306.09341), by CLIP H/14."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import hf_hub_download
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, pad, resize

from ditprune.metrics.clip import MEAN, STD
from ditprune.metrics.features import measuring, weights_hash
from ditprune.metrics.frozen import Frozen, Network
from ditprune.metrics.pickled import loading, read_tensors
from ditprune.metrics.pretrained import in_colour, standardized
from ditprune.metrics.prompted import PromptMetric, demand_prompts
from ditprune.metrics.prompted_clip import cosines

HUB_ID, FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"
ARCHITECTURE = "ViT-H-14"
WHERE_FROM = (
    f"Give HPSv2, as weights=, the local path of {FILE} from https://huggingface.co/{HUB_ID}, or a "
    "hub id and a network to reach it"
)


class HPSv2(Frozen, PromptMetric):
    """100 times the cosine of each image with its prompt, by the authors' network of version 2.1.

    By open_clip, which is an extra: `pip install 'ditprune[hps]'`.
    """

    def __init__(self, weights: str = HUB_ID) -> None:
        """Take a hub id, or the local path of the authors' file.

        Raises:
            ValueError: if open_clip is not installed.
        """
        open_clip()
        self.weights = weights

    def load(self) -> Network:
        """Return the network."""
        return load_hps(self.weights, open_clip().get_model_config(ARCHITECTURE))

    @cached_property
    def name(self) -> str:
        """Return `hps/v2.1/`, the hash of the weights and `/x100`."""
        return f"hps/v2.1/{weights_hash(self.network)}/x100"

    def score(
        self, images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]
    ) -> Float64[Tensor, " n"]:
        """Return the score of each image with the prompt of the same place, on the CPU.

        Prompts are cut after 77 tokens.

        Raises:
            ValueError: if there are not as many prompts as images, or none.
        """
        demand_prompts(images, prompts)
        tokens = open_clip().get_tokenizer(ARCHITECTURE)(list(prompts))
        with measuring(self.device):
            side = self.network.visual.image_size[0]
            pixels = standardized(in_square(images.to(self.device), side), MEAN, STD)
            seen = self.network.encode_image(pixels)
            said = self.network.encode_text(tokens.to(self.device))
            return 100 * cosines(seen, said).cpu()


def open_clip() -> ModuleType:
    """Return the package.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import open_clip as package
    except ImportError as error:
        raise ValueError(
            "HPSv2 takes the package open_clip: pip install 'ditprune[hps]', or leave it out"
        ) from error
    return package


def load_hps(weights: str, config: dict[str, Any]) -> Network:
    """Return the network of a configuration of open_clip, with weights from a hub id or a file.

    Raises:
        ValueError: if the weights cannot be had, or are not this network's.
    """
    with loading(f"HPSv2's {FILE}", weights, WHERE_FROM):
        path = weights if Path(weights).is_file() else hf_hub_download(weights, FILE)
        network = open_clip().CLIP(**config)
        network.load_state_dict(read_tensors(path, address=""))
    return network.eval()


def in_square(images: UInt8[Tensor, "n c h w"], side: int) -> Float[Tensor, "n 3 s s"]:
    """Return pixels in [0, 1] of the whole images, scaled to fit into a square, on black."""
    longest = max(images.shape[2:])
    height, width = (round(length * side / longest) for length in images.shape[2:])
    small = resize(in_colour(images), [height, width], InterpolationMode.BICUBIC, antialias=True)
    left, top = (side - width) // 2, (side - height) // 2
    around = [left, top, side - width - left, side - height - top]
    pixels: Tensor = pad(small, around).float() / 255
    return pixels
