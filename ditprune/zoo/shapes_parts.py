"""The untrained networks of `shapes-flux`, and their tokenizers."""

import json
from itertools import pairwise
from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from ditprune.zoo.shapes import COLOURS, HEADS, IMAGE_SIZE, RELATIONS, SHAPES, SIZES

SHIFT = 3.0
"""Of the schedule, towards its noisy end."""
TEXT_LENGTH = 16
"""Tokens that the text encoders take: the longest caption has eleven."""
WORDS = sorted({*" ".join(("a", *SIZES, *COLOURS, *SHAPES, *RELATIONS)).split()})
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
END_OF_WORD = "</w>"
ENDS = ("<|startoftext|>", "<|endoftext|>")


def clip_tokenizer() -> CLIPTokenizer:
    """Return byte pairs that know every word of the captions, and letters for all others."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        end_of_word_suffix=END_OF_WORD,
        initial_alphabet=LETTERS,
        # Last letters too, or chance would number them anew in every process.
        special_tokens=[*ENDS, *(letter + END_OF_WORD for letter in LETTERS)],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*WORDS, *LETTERS], trainer)
    merges: Any = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    vocabulary: Any = tokenizer.get_vocab()
    return CLIPTokenizer(vocabulary, merges, model_max_length=TEXT_LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """Return pieces of which every word of the captions is one, and letters for all others."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("\u2581", -8.0)]
    pieces = [*((f"\u2581{word}", -3.0) for word in WORDS), *((x, -8.0) for x in LETTERS)]
    return T5Tokenizer([*special, *pieces], extra_ids=0, model_max_length=TEXT_LENGTH)


def t5_encoder() -> T5EncoderModel:
    """Return an encoder of two layers, 64 wide."""
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def clip_model() -> CLIPModel:
    """Return a CLIP whose towers are 64 and 96 wide."""
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def autoencoder() -> AutoencoderKL:
    """Return an autoencoder to latents of eight channels and an eighth of the width."""
    return AutoencoderKL(
        block_out_channels=(8, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=8,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def flux_transformer() -> FluxTransformer2DModel:
    """Return a transformer with two double and four single blocks, 128 wide."""
    return FluxTransformer2DModel(
        in_channels=32,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        axes_dims_rope=(8, 12, 12),
    )


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return the schedule of a straight flow, with most steps where colours are decided."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


class ShapesReader(nn.Module):
    """A five-layer CNN that reads the attributes of a picture; 128 penultimate features."""

    num_features = 128

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 48, 64)
        self.convs = nn.ModuleList(
            nn.Conv2d(narrow, wide, 5, stride=2, padding=2) for narrow, wide in pairwise(widths)
        )
        self.penultimate = nn.Linear(64 * 4 * 4, self.num_features)
        self.head = nn.Linear(self.num_features, sum(HEADS.values()))

    def features(self, images: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b 128"]:
        """Return the penultimate activations of images in [-1, 1]."""
        x = images
        for conv in self.convs:
            x = F.gelu(conv(x))
        return F.gelu(self.penultimate(x.flatten(1)))

    def forward(self, images: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b logits"]:
        """Return the logits of all attributes of images in [-1, 1], one head after another."""
        return self.head(self.features(images))

    def heads(self, images: Float[Tensor, "b 3 64 64"]) -> dict[str, Float[Tensor, "b values"]]:
        """Return the logits of every attribute."""
        return dict(zip(HEADS, self(images).split(list(HEADS.values()), 1), strict=True))
