"""The parameter counts of arXiv 2607.00927, from the layers' shapes alone.

They tell which layer was pruned at which granularity: per-row pruning floors in each row, and so
leaves more. Nothing is allocated: the models are on the meta device.
"""

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch import nn

from ditprune.budget import Uniform
from ditprune.families import DiT, Family, Table
from ditprune.granularity import ClusteringAware, Granularity, Layer, Row
from ditprune.masks import weight_matrix
from ditprune.plan import Plan, plan
from ditprune.targets import Role

DIT_PARAMETERS = 675.13e6
"""Of DiT-XL/2 as published. That of diffusers has more: a copy of the embedders in every block."""

PIXART_LAYERS = Table(
    table={
        rf"transformer_blocks\.(?P<block>\d+)\.{layer}": role
        for layer, role in {
            r"attn[12]\.to_q": Role.ATTN_Q,
            r"attn[12]\.to_k": Role.ATTN_K,
            r"attn[12]\.to_v": Role.ATTN_V,
            r"attn[12]\.to_out\.0": Role.ATTN_OUT,
            r"ff\.net\.0\.proj": Role.MLP_UP,
            r"ff\.net\.2": Role.MLP_DOWN,
        }.items()
    }
)


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
    layer = planned(pixart, PIXART_LAYERS, Layer(), sparsity).num_pruned
    row = planned(pixart, PIXART_LAYERS, Row("floor"), sparsity).num_pruned
    assert (layer - row) / 1e6 == pytest.approx(millions, abs=0.001)


def test_pixart_sigma_has_594_million_weights_as_targets(pixart):
    targets = planned(pixart, PIXART_LAYERS, Layer(), 0.5)
    assert targets.num_target_weights / 1e6 == pytest.approx(594.5, abs=0.05)
    assert {layer.shape for layer in targets.layers} == {(1152, 1152), (4608, 1152), (1152, 4608)}


def test_clustering_awareness_changes_nothing_in_pixart_sigma_which_modulates_elsewhere(pixart):
    by_kind = planned(pixart, PIXART_LAYERS, CAG, 0.2)
    assert by_kind.num_pruned == planned(pixart, PIXART_LAYERS, Layer(), 0.2).num_pruned
