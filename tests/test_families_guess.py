import pytest
import torch
from diffusers import DiTTransformer2DModel
from test_families_flux import TestFlux as Flux1
from test_families_z_image import TestZImage as ZImage1
from torch import nn

import ditprune
from ditprune.families import Batch, DiT, Flux, Guess, Table, ZImage
from ditprune.granularity import Layer
from ditprune.recipe import Recipe
from ditprune.saliency import Energy
from ditprune.targets import Role


class Block(nn.Module):
    """As the original DiT names its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8)})
        self.attn.num_heads = 4
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(8, 32), "fc2": nn.Linear(32, 8)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(8, 48))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift, scale, *_ = self.adaLN_modulation[1](c).unsqueeze(1).chunk(6, -1)
        q, _, v = self.attn["qkv"](x * (1 + scale) + shift).chunk(3, -1)
        x = x + self.attn["proj"](q.sigmoid() * v)
        return x + self.mlp["fc2"](self.mlp["fc1"](x).relu())


class Model(nn.Module):
    def __init__(self, num_blocks: int = 3) -> None:
        super().__init__()
        self.x_embedder = nn.Linear(8, 8)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))

    def forward(self, x, timestep, labels):
        c = torch.stack([timestep, labels] * 4, 1).float()
        x = self.x_embedder(x)
        for block in self.blocks:
            x = block(x, c)
        return self.head(x)


def batch() -> Batch:
    return Batch(torch.randn(2, 5, 8), torch.rand(2), torch.arange(2), torch.zeros(2))


def roles(family, model) -> dict[str, Role]:
    return {target.name: target.role for target in family.targets(model)}


def test_what_repeats_are_the_blocks_and_names_tell_the_roles():
    targets = Guess().targets(Model())
    assert [(t.name.removeprefix("blocks.1."), t.role) for t in targets if t.block == 1] == [
        ("attn.qkv", Role.FUSED_IN),
        ("attn.proj", Role.ATTN_OUT),
        ("mlp.fc1", Role.MLP_UP),
        ("mlp.fc2", Role.MLP_DOWN),
        ("adaLN_modulation.1", Role.MODULATION),
    ]
    assert {target.num_heads for target in targets} == {4}
    assert {target.block_name for target in targets} == {f"blocks.{i}" for i in range(3)}


def test_a_guess_is_a_family():
    model = Model().eval()
    recipe = Recipe(Energy(), Layer(), 0.5)
    outcome = ditprune.prune(model, [batch()], family=Guess(), recipe=recipe)
    assert len(outcome.masks.masks) == 15
    assert outcome.masks.sparsity() == 0.5


def test_the_description_is_the_table_as_python():
    written = Guess().describe(Model())
    table = eval(written, {"Table": Table, "Role": Role})
    assert table == Table(table=Guess().table(Model()))
    assert roles(table, Model()) == roles(Guess(), Model())
    assert r'r"(?P<block>blocks\.\d+)\.attn\.qkv": Role.FUSED_IN,' in written


def test_models_of_the_known_families_are_guessed_rightly(tiny_dit):
    """But for what no name tells: that the single blocks' last layer reads the attention too."""
    embedders = "emb"  # of DiT, copied into each block by diffusers
    assert roles(Guess(ignore=embedders), tiny_dit) == roles(DiT(), tiny_dit)
    flux, z_image = Flux1().build(), ZImage1().build()
    fused = {name: role for name, role in roles(Flux(), flux).items() if role is Role.FUSED_OUT}
    assert roles(Guess(), flux) == {**roles(Flux(), flux), **dict.fromkeys(fused, Role.MLP_DOWN)}
    assert roles(Guess(), z_image) == roles(ZImage(), z_image)


def test_named_conditions_are_passed_as_to_models_of_diffusers(tiny_dit, calibration):
    named = calibration._replace(condition={"class_labels": calibration.condition})
    alone = DiT().predict(tiny_dit, calibration)[0]
    assert isinstance(tiny_dit, DiTTransformer2DModel)
    assert torch.allclose(Guess().predict(tiny_dit, named)[0], alone, atol=1e-5)


def test_where_nothing_repeats_the_layers_are_listed():
    with pytest.raises(ValueError, match=r"nothing repeats in Model(.|\n)*blocks\.0\.attn\.qkv"):
        Guess().targets(Model(num_blocks=1))
