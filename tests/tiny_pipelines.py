"""Whole pipelines of diffusers with random weights, small enough for a test."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from ditprune.diffusers_pipeline import conditional_family
from ditprune.prompts import Encoded, encode

WORDS = ["a", "the", "red", "blue", "cat", "dog", "on", "moon", "very", "small"]


def clip_tokenizer() -> CLIPTokenizer:
    letters = {chr(code): n for n, code in enumerate(range(ord("a"), ord("z") + 1))}
    ends = {f"{letter}</w>": n + 26 for letter, n in letters.items()}
    special = {"<|startoftext|>": 52, "<|endoftext|>": 53}
    return CLIPTokenizer({**letters, **ends, **special}, [], model_max_length=16)


def t5_tokenizer() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581", -2.0)]
    words = [(f"\u2581{word}", -3.0) for word in WORDS]
    return T5Tokenizer([*special, *words], extra_ids=0, model_max_length=64)


def clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=8,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )


def t5() -> T5EncoderModel:
    config = T5Config(vocab_size=14, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def vae(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        shift_factor=0.1,
        scaling_factor=0.5,
    ).eval()


def flux() -> FluxPipeline:
    """Embedded guidance, packed latents, a schedule shifted by the number of tokens."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(4, 2, 2),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae(4),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer.eval(),
    )


def sd3() -> StableDiffusion3Pipeline:
    """Two guidance branches in one call, and three text encoders."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4),
        text_encoder=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=14, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        ).eval(),
        tokenizer_3=t5_tokenizer(),
        transformer=transformer.eval(),
    )


def pixart() -> PixArtSigmaPipeline:
    """Attention masks, and a learned variance."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=8,
        norm_num_groups=2,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        scheduler=DDIMScheduler(),
        vae=vae(4),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=transformer.eval(),
    )


PROMPTS = ["a red cat", "blue moon"]
SIZES = {"flux": (16, 24), "sd3": (8, 16), "pixart": (8, 16)}
"""Not square, so that height is not width."""
STEPS = 4


def pipeline_of(kind: str) -> DiffusionPipeline:
    """With weights that do something: some begin with zeros."""
    pipeline = {"flux": flux, "sd3": sd3, "pixart": pixart}[kind]()
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    for parameter in pipeline.transformer.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    return pipeline


def options_of(kind: str) -> dict:
    height, width = SIZES[kind]
    binning = {"use_resolution_binning": False} if kind == "pixart" else {}
    return {"num_inference_steps": STEPS, "height": height, "width": width, **binning}


def encoded(pipeline, kind, prompts=PROMPTS, guided=False, **options) -> Encoded:
    family = conditional_family(pipeline.transformer)
    return encode(pipeline, family, prompts, guided=guided, **{**options_of(kind), **options})
