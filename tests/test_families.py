import pytest
import torch
from torch import nn

from ditprune import Role
from ditprune.families import Batch, DiT, Table


class TestDiT:
    def test_the_seven_matrices_of_every_block_are_targets(self, tiny_dit):
        targets = DiT().targets(tiny_dit)
        assert [t.name for t in targets if t.block == 1] == [
            f"transformer_blocks.1.{name}"
            for name in (
                "norm1.linear",
                "attn1.to_q",
                "attn1.to_k",
                "attn1.to_v",
                "attn1.to_out.0",
                "ff.net.0.proj",
                "ff.net.2",
            )
        ]
        assert [t.role for t in targets if t.block == 0] == [
            Role.MODULATION,
            Role.ATTN_Q,
            Role.ATTN_K,
            Role.ATTN_V,
            Role.ATTN_OUT,
            Role.MLP_UP,
            Role.MLP_DOWN,
        ]
        assert {t.num_heads for t in targets} == {2}

    def test_embedders_and_the_final_layer_stay_dense(self, tiny_dit):
        names = {name for name, m in tiny_dit.named_modules() if isinstance(m, nn.Linear)}
        spared = names - {t.name for t in DiT().targets(tiny_dit)}
        assert {"proj_out_1", "proj_out_2"} < spared
        assert sum(".emb." in name for name in spared) == 4

    def test_modulation_can_be_left_out(self, tiny_dit):
        roles = {t.role for t in DiT(ignore_roles=(Role.MODULATION,)).targets(tiny_dit)}
        assert roles == {t.role for t in DiT().targets(tiny_dit)} - {Role.MODULATION}

    def test_include_and_ignore_are_searched_in_names(self, tiny_dit):
        targets = DiT(include=r"blocks\.1\.", ignore="attn1|norm").targets(tiny_dit)
        assert [t.name for t in targets] == [
            "transformer_blocks.1.ff.net.0.proj",
            "transformer_blocks.1.ff.net.2",
        ]

    def test_nothing_left_is_an_error_that_lists_the_candidates(self, tiny_dit):
        with pytest.raises(ValueError, match=r"leaves nothing to prune(.|\n)*ff\.net\.2"):
            DiT(include="no such layer").targets(tiny_dit)

    def test_another_kind_of_model_is_an_error_that_lists_its_layers(self):
        model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])})
        model.config = type("Config", (), {"num_attention_heads": 1})()
        with pytest.raises(ValueError, match=r"expects layers named like(.|\n)*blocks\.0"):
            DiT().targets(model)

    def test_it_predicts_with_the_class_and_with_the_null_class(self, tiny_dit, calibration):
        both = DiT().predict(tiny_dit, calibration)
        for branch, labels in zip(
            both, (calibration.condition, torch.full((12,), 10)), strict=True
        ):
            alone = tiny_dit(
                calibration.latents, timestep=calibration.timestep, class_labels=labels
            ).sample
            assert torch.allclose(branch, alone, atol=1e-5)
        assert not torch.allclose(both[0], both[1], atol=1e-2)


class MyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 2, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.depthwise(self.up(x)).relu())


class MyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([MyBlock(), MyBlock()])

    def forward(self, x, timestep, condition):
        for layer in self.layers:
            x = layer(x)
        return x * condition.view(-1, 1, 1, 1)


class TestTable:
    table = Table(
        table={
            r"(?P<block>layers\.\d+)\.up": Role.MLP_UP,
            r"(?P<block>layers\.\d+)\.down": Role.MLP_DOWN,
        }
    )

    def test_a_model_of_your_own_is_found_by_its_patterns(self):
        targets = self.table.targets(MyModel())
        assert [(t.name, t.role, t.block) for t in targets] == [
            ("layers.0.up", Role.MLP_UP, 0),
            ("layers.0.down", Role.MLP_DOWN, 0),
            ("layers.1.up", Role.MLP_UP, 1),
            ("layers.1.down", Role.MLP_DOWN, 1),
        ]

    def test_it_calls_the_model_with_latents_timestep_and_condition(self):
        batch = Batch(torch.ones(3, 2, 4, 4), torch.zeros(3), torch.arange(3.0), torch.zeros(3))
        prediction = self.table.predict(MyModel(), batch)
        assert prediction.shape == (1, 3, 2, 4, 4)
        assert not prediction[0, 0].any()

    def test_a_pattern_that_matches_nothing_is_named(self):
        with pytest.raises(ValueError, match=r"named like layers\\\.x"):
            Table(table={r"layers\.x": Role.MLP_UP}).targets(MyModel())

    def test_a_pattern_that_tells_the_blocks_index_alone_is_named(self):
        with pytest.raises(ValueError, match=r"layers\.\(\?P<block>\\d\+\)\\\.up.*whole name"):
            Table(table={r"layers.(?P<block>\d+)\.up": Role.MLP_UP}).targets(MyModel())

    def test_depthwise_convolutions_are_no_candidates(self):
        with pytest.raises(ValueError, match="depthwise"):
            Table(table={r"(?P<block>layers\.\d+)\.depthwise": Role.MLP_UP}).targets(MyModel())


def test_samples_of_named_conditions_are_cut_from_each(calibration):
    batch = calibration._replace(
        condition={"text": torch.rand(12, 3, 4), "mask": torch.ones(12, 3)}
    )
    one = batch.sample(5)
    assert one.condition["text"].shape == (1, 3, 4)
    assert torch.equal(one.latents, batch.latents[5:6])


def test_integers_keep_their_dtype_beside_a_half_precision_weight(calibration):
    cast = calibration.like(torch.ones(1, dtype=torch.bfloat16))
    assert cast.latents.dtype is torch.bfloat16
    assert cast.condition.dtype is torch.int64
