"""Whole pipelines of diffusers with random weights, small enough for a test."""

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2Config,
    Qwen2Model,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from ditprune.diffusers_pipeline import conditional_family
from ditprune.prompts import Encoded, encode

WORDS = ["a", "the", "red", "blue", "cat", "dog", "on", "moon", "very", "small"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_tokenizer() -> CLIPTokenizer:
    letters = {letter: n for n, letter in enumerate(LETTERS)}
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


def gemma_tokenizer() -> GemmaTokenizer:
    """Of letters."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581"]
    return GemmaTokenizer({token: n for n, token in enumerate([*special, *LETTERS])})


def gemma() -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    return Gemma2Model(config).eval()


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Of letters; a space is what byte-level tokenizers make of it."""
    vocabulary = {token: n for n, token in enumerate(["<|endoftext|>", "\u0120", *LETTERS])}
    turns = "user {{ messages[0].content }} assistant"
    return Qwen2Tokenizer(vocabulary, [], chat_template=turns)


def qwen() -> Qwen2Model:
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return Qwen2Model(config).eval()


def flux() -> FluxPipeline:
    """Embedded guidance, packed latents, a schedule shifted by the number of tokens."""
    return FluxPipeline(**flux_parts())


def kontext() -> FluxKontextPipeline:
    """FLUX, told an image too."""
    return FluxKontextPipeline(**flux_parts())


def flux_parts() -> dict:
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
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        "vae": vae(4),
        "text_encoder": CLIPTextModel(clip_config()).eval(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5(),
        "tokenizer_2": t5_tokenizer(),
        "transformer": transformer.eval(),
    }


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


def sana() -> SanaPipeline:
    """An instruction before every prompt, and an encoder of images of its own."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=4,
        cross_attention_head_dim=4,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=8,
        timestep_scale=0.5,
    )
    return SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma(),
        vae=dc_vae(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def dc_vae() -> AutoencoderDC:
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
        scaling_factor=0.4,
    ).eval()


def qwen_image() -> QwenImagePipeline:
    """Guided tokens as long as the conditional ones."""
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 2, 2),
    )
    decoder = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=decoder.eval(),
        text_encoder=qwen(),
        tokenizer=qwen_tokenizer(),
        transformer=transformer.eval(),
    )


def lumina2() -> Lumina2Pipeline:
    """Guided rows as long as the conditional ones, and only the first steps guided, if asked."""
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 32, 32),
        cap_feat_dim=8,
    )
    return Lumina2Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae(4),
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
    )


def z_image() -> ZImagePipeline:
    """A scale of guidance that counts from 0."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[4, 2, 2],
        axes_lens=[256, 64, 64],
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4),
        text_encoder=qwen(),
        tokenizer=qwen_tokenizer(),
        transformer=transformer.eval(),
    )


def dit() -> DiTPipeline:
    """Latents, a learned variance, and as many classes as diffusers takes for granted."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
    )
    return DiTPipeline(transformer.eval(), vae(4), DDIMScheduler())


PROMPTS = ["a red cat", "blue moon"]
SIZES = {
    "flux": (16, 24),
    "kontext": (16, 24),
    "sd3": (8, 16),
    "pixart": (8, 16),
    "sana": (32, 64),
    "qwen_image": (8, 16),
    "lumina2": (32, 64),
    "z_image": (8, 16),
}
"""Of text-to-image pipelines. Not square, so that height is not width."""
SPECIAL = {
    "kontext": {"max_area": 16 * 24, "_auto_resize": False},
    "pixart": {"use_resolution_binning": False},
    "sana": {"use_resolution_binning": False},
}
"""What lets a pipeline draw images as small as these."""
STEPS = 4


def pipeline_of(kind: str) -> DiffusionPipeline:
    """With weights that do something: some begin with zeros."""
    pipeline = globals()[kind]()
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    for parameter in pipeline.transformer.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    return pipeline


def options_of(kind: str) -> dict:
    height, width = SIZES[kind]
    size = {"height": height, "width": width}
    return {"num_inference_steps": STEPS, **size, **SPECIAL.get(kind, {})}


def encoded(pipeline, kind, prompts=PROMPTS, guided=False, **options) -> Encoded:
    family = conditional_family(pipeline.transformer)
    return encode(pipeline, family, prompts, guided=guided, **{**options_of(kind), **options})
