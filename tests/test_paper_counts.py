"""The parameter counts of arXiv 2607.00927 and of published models, from layers' shapes alone.

The paper's tell which layer was pruned at which granularity: per-row pruning floors in each row,
and so leaves more. Nothing is allocated: the models are on the meta device.
"""

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from torch import nn

from ditprune.budget import Uniform
from ditprune.families import (
    SD3,
    DiT,
    Family,
    Flux,
    Flux2,
    PixArt,
    QwenImage,
    Sana,
    UNet,
    ZImage,
)
from ditprune.granularity import ClusteringAware, Granularity, Layer, Row
from ditprune.masks import weight_matrix
from ditprune.plan import Plan, plan
from ditprune.targets import Role

DIT_PARAMETERS = 675.13e6
"""Of DiT-XL/2 as published. That of diffusers has more: a copy of the embedders in every block."""


@pytest.fixture(scope="module")
def dit() -> nn.Module:
    with torch.device("meta"):
        return DiTTransformer2DModel(
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            num_layers=28,
            sample_size=32,
            patch_size=2,
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_zero",
        )


@pytest.fixture(scope="module")
def pixart() -> nn.Module:
    """PixArt-Sigma; its text width and image size touch no target."""
    with torch.device("meta"):
        return PixArtTransformer2DModel(sample_size=32)


def planned(model: nn.Module, family: Family, granularity: Granularity, sparsity: float) -> Plan:
    weights = {target: weight_matrix(model, target) for target in family.targets(model)}
    return plan(model, weights, granularity, sparsity, Uniform())


CAG = ClusteringAware("by-kind", rounding="floor")


@pytest.mark.parametrize(
    ("granularity", "sparsity", "millions"),
    [
        (Layer(), 0.2, 541.35),
        (Layer(), 0.4, 407.58),
        (Layer(), 0.5, 340.69),
        (Row("floor"), 0.2, 541.55),
        (Row("floor"), 0.4, 407.94),
        (Row("floor"), 0.5, 340.69),
        (CAG, 0.2, 541.43),
        (CAG, 0.4, 407.73),
        (CAG, 0.5, 340.69),
    ],
)
def test_dit_xl_2_keeps_as_many_parameters_as_table_1_says(dit, granularity, sparsity, millions):
    kept = DIT_PARAMETERS - planned(dit, DiT(), granularity, sparsity).num_pruned
    assert kept / 1e6 == pytest.approx(millions, abs=0.02)


def test_dit_xl_2_has_the_five_linear_layers_of_28_blocks_as_targets(dit):
    assert planned(dit, DiT(), Layer(), 0.5).num_target_weights == 28 * 18 * 1152**2
    assert {target.block for target in DiT().targets(dit)} == set(range(28))


def test_dit_xl_2_of_diffusers_is_the_published_one_but_for_copies_of_its_embedders(dit):
    copies = sum(
        parameter.numel()
        for name, parameter in dit.named_parameters()
        if ".emb." in name and not name.startswith("transformer_blocks.0.")
    )
    positions = 256 * 1152  # a frozen parameter there, a buffer here
    published = planned(dit, DiT(), Layer(), 0.5).num_model_weights - copies + positions
    assert published / 1e6 == pytest.approx(DIT_PARAMETERS / 1e6, abs=0.005)


@pytest.mark.parametrize(("sparsity", "millions"), [(0.2, 0.174), (0.4, 0.316), (0.5, 0.0)])
def test_per_row_pixart_sigma_keeps_more_by_what_the_paper_reports(pixart, sparsity, millions):
    layer = planned(pixart, PixArt(), Layer(), sparsity).num_pruned
    row = planned(pixart, PixArt(), Row("floor"), sparsity).num_pruned
    assert (layer - row) / 1e6 == pytest.approx(millions, abs=0.001)


def test_pixart_sigma_has_594_million_weights_as_targets(pixart):
    targets = planned(pixart, PixArt(), Layer(), 0.5)
    assert targets.num_target_weights / 1e6 == pytest.approx(594.5, abs=0.05)
    assert {layer.shape for layer in targets.layers} == {(1152, 1152), (4608, 1152), (1152, 4608)}


def test_clustering_awareness_changes_nothing_in_pixart_sigma_which_modulates_elsewhere(pixart):
    by_kind = planned(pixart, PixArt(), CAG, 0.2)
    assert by_kind.num_pruned == planned(pixart, PixArt(), Layer(), 0.2).num_pruned


SD3_MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
SD35_MEDIUM = {**SD3_MEDIUM, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"}
SDXL = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.parametrize(
    ("kind", "config", "family", "total", "targets"),
    [
        (FluxTransformer2DModel, {"guidance_embeds": True}, Flux(), 11_901.4, 11_834.2),
        (Flux2Transformer2DModel, {}, Flux2(), 32_223.3, 31_406.9),
        (SD3Transformer2DModel, SD3_MEDIUM, SD3(), 2028.3, 2007.8),
        (SD3Transformer2DModel, SD35_MEDIUM, SD3(), 2243.2, 2222.5),
        (SanaTransformer2DModel, {}, Sana(), 1604.5, 1555.5),
        (QwenImageTransformer2DModel, {}, QwenImage(), 20_430.4, 20_384.3),
        (ZImageTransformer2DModel, {}, ZImage(), 6154.9, 6142.0),
        (UNet2DConditionModel, SDXL, UNet(), 2567.5, 2221.2),
    ],
    ids=["FLUX.1-dev", "FLUX.2-dev", "SD3-medium", "SD3.5-medium", "SANA", "Qwen", "Z", "SDXL"],
)
def test_published_models_have_so_many_million_parameters_in_so_many_targets(
    kind, config, family, total, targets
):
    with torch.device("meta"):
        model = kind(**config)
    chosen = family.targets(model)
    weights = sum(weight_matrix(model, target).numel() for target in chosen)
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert weights / 1e6 == pytest.approx(targets, abs=0.06)
    assert everything / 1e6 == pytest.approx(total, abs=0.06)


def test_flux_1_dev_has_over_a_quarter_of_its_weights_in_modulation():
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    modulation = [t for t in Flux().targets(model) if t.role is Role.MODULATION]
    weights = sum(weight_matrix(model, target).numel() for target in modulation)
    assert weights / 1e9 == pytest.approx(3.23, abs=0.005)
    assert {target.block for target in modulation} == set(range(19 + 38))
