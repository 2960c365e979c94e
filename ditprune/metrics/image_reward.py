"""How people would rate an image of its prompt (Xu et al. 2023, arXiv 2304.05977), by BLIP."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn
from transformers import BertTokenizer
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from ditprune.metrics.clip import MEAN, STD
from ditprune.metrics.features import measuring, weights_hash
from ditprune.metrics.frozen import Frozen
from ditprune.metrics.pickled import loading, read_tensors
from ditprune.metrics.pretrained import load_tokenizer, standardized, tokenized
from ditprune.metrics.prompted import PromptMetric, demand_prompts
from ditprune.metrics.prompted_clip import as_clip_resizes

HUB_ID, FILE = "THUDM/ImageReward", "ImageReward.pt"
WHERE_FROM = (
    f"Give ImageReward, as weights=, the local path of {FILE} from "
    f"https://huggingface.co/{HUB_ID}, or a hub id and a network to reach it"
)

VISION = BlipVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    layer_norm_eps=1e-6,
)
TEXT = BlipTextConfig(encoder_hidden_size=1024, num_attention_heads=12, layer_norm_eps=1e-12)
NUM_TOKENS = 35

REWARD_MEAN, REWARD_STD = 0.16717362830052426, 1.0333394966054072
"""Of the authors' own ratings, which scores are measured in."""

UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\.|.*\.position_ids$")
RENAMED = (
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.", r"vision.encoder.layers.\1.self_attn."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm", r"vision.encoder.layers.\1.layer_norm"),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.", r"vision.encoder.layers.\1."),
    (r"(\.self_attn)\.proj\.", r"\1.projection."),
    (r"^mlp\.layers\.", "head."),
)
"""From the authors' names to those of transformers."""


class ImageReward(Frozen, PromptMetric):
    """The reward of each image with its prompt, in deviations from the mean of the authors' own.

    By transformers' BLIP, with the authors' weights (https://github.com/THUDM/ImageReward).
    """

    def __init__(self, weights: str = HUB_ID, tokenizer: str = "bert-base-uncased") -> None:
        """Take hub ids or local paths: of the weights' file, and of the tokenizer's folder."""
        self.weights = weights
        self.tokenizer_name = tokenizer

    def load(self) -> "RewardNetwork":
        """Return the network."""
        return load_reward(self.weights, VISION, TEXT)

    @cached_property
    def tokenizer(self) -> Any:
        """Return the tokenizer; the first call loads it."""
        return load_tokenizer(BertTokenizer, self.tokenizer_name, "vocab.txt", "tokenizer=")

    @cached_property
    def name(self) -> str:
        """Return `image_reward/`, the hash of the weights and `/standardized`."""
        return f"image_reward/{weights_hash(self.network)}/standardized"

    def score(
        self, images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]
    ) -> Float64[Tensor, " n"]:
        """Return the score of each image with the prompt of the same place, on the CPU.

        Prompts that are too long are cut, and a warning counts them.

        Raises:
            ValueError: if there are not as many prompts as images, or none.
        """
        demand_prompts(images, prompts)
        tokens = tokenized(self.tokenizer, prompts, NUM_TOKENS).to(self.device)
        with measuring(self.device):
            size = self.network.vision.config.image_size
            pixels = standardized(as_clip_resizes(images.to(self.device), size), MEAN, STD)
            rewards = self.network(pixels, tokens["input_ids"], tokens["attention_mask"])
        return (rewards.double().cpu() - REWARD_MEAN) / REWARD_STD


class RewardNetwork(nn.Module):
    """BLIP, whose text looks at the image, and linear layers on what its first token then says."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        # Numbered as the authors', whose other layers only dropped out in training.
        self.head = nn.Sequential()
        widths = {"0": (text.hidden_size, 1024), "2": (1024, 128), "4": (128, 64), "6": (64, 16)}
        for number, (num_in, num_out) in {**widths, "7": (16, 1)}.items():
            self.head.add_module(number, nn.Linear(num_in, num_out))

    def forward(
        self, pixels: Float[Tensor, "n 3 h w"], ids: Tensor, mask: Tensor
    ) -> Float[Tensor, " n"]:
        """Return the rewards of images with the tokens of their prompts."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        said = self.text(ids, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False)
        rewards: Tensor = self.head(said.last_hidden_state[:, 0]).squeeze(1)
        return rewards


def load_reward(weights: str, vision: BlipVisionConfig, text: BlipTextConfig) -> RewardNetwork:
    """Return the network with weights from a hub id or a local file.

    Raises:
        ValueError: if the weights cannot be had, or are not this network's.
    """
    with loading(f"ImageReward's {FILE}", weights, WHERE_FROM):
        path = weights if Path(weights).is_file() else hf_hub_download(weights, FILE)
        network = RewardNetwork(vision, text)
        network.load_state_dict(renamed(read_tensors(path, address="")))
    return network.eval()


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' weights under the names of `RewardNetwork`, without those not used."""
    return {new_name(name): value for name, value in state.items() if not UNUSED.match(name)}


def new_name(name: str) -> str:
    """Return the name of a weight in `RewardNetwork`."""
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name
