import numpy as np
import pytest
import torch
from contracts import GranularityContract, counts, target

from ditprune.granularity import ClusteringAware, Layer, Row
from ditprune.granularity.clustering_aware import row_variation, widest_gap
from ditprune.targets import PruneTarget, Role


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def clustered(seed: int = 0) -> torch.Tensor:
    """Rows of two very different loudnesses, as in adaLN layers."""
    return noise(8, 32, seed=seed) * torch.tensor([1.0] * 4 + [100.0] * 4).unsqueeze(1)


def model_scores() -> dict[PruneTarget, torch.Tensor]:
    return {
        **{target(f"mlp{i}"): noise(8, 32, seed=i) for i in range(3)},
        **{target(f"ada{i}", Role.MODULATION): clustered(seed=i) for i in range(3)},
    }


class WithNames(GranularityContract):
    def names(self, scores: dict[PruneTarget, torch.Tensor]) -> list[str]:
        pools = self.granularity.pools(scores, counts(scores, 0.5))
        return [pools[name].name for name in scores]


class TestAuto(WithNames):
    granularity = ClusteringAware()

    def test_clustered_layers_are_pruned_per_row_and_the_others_per_layer(self):
        scores = model_scores()
        kept = self.keep(scores)
        for name, mask in kept.items():
            expected = Row() if name.role is Role.MODULATION else Layer()
            assert torch.equal(mask, expected.keep(scores, counts(scores, 0.5))[name])

    def test_layers_that_are_all_alike_are_all_pruned_per_layer(self):
        scores = {target(str(i)): clustered(seed=i) for i in range(6)}
        assert {
            pools.name for pools in self.granularity.pools(scores, counts(scores, 0.5)).values()
        } == {"layer"}

    def test_one_outlier_is_no_kind(self):
        scores = {**{target(f"{i}"): noise(8, 32, seed=i) for i in range(5)}, target(): clustered()}
        assert self.names(scores)[-1] == "layer"

    def test_what_it_will_be_is_not_known_beforehand(self):
        assert self.granularity.label(target()) == "row or layer"


class TestByKind(WithNames):
    granularity = ClusteringAware(threshold="by-kind")

    def test_modulation_is_pruned_per_row_whatever_its_scores(self):
        scores = {target("ada", Role.MODULATION): noise(4, 4), target("mlp"): clustered()}
        names = [
            pools.name for pools in self.granularity.pools(scores, counts(scores, 0.5)).values()
        ]
        assert names == ["row", "layer"]

    def test_what_it_will_be_is_known_beforehand(self):
        assert self.granularity.label(target(role=Role.MODULATION)) == "row"
        assert self.granularity.label(target()) == "layer"


class TestFloor:
    def test_rows_that_compete_by_themselves_are_rounded_down_and_layers_are_not(self):
        scores = {target("ada", Role.MODULATION): noise(5, 9), target("mlp"): noise(5, 9)}
        granularity = ClusteringAware("by-kind", rounding="floor")
        masks = granularity.keep(scores, dict.fromkeys(scores, 13))
        assert (~masks[target("ada", Role.MODULATION)]).sum(1).tolist() == [2] * 5
        assert int((~masks[target("mlp")]).sum()) == 13

    @pytest.mark.parametrize("rounding", ["exact", "floor"])
    def test_where_the_kind_decides_the_plan_knows_what_rounding_leaves(self, rounding):
        granularity = ClusteringAware("by-kind", rounding=rounding)
        planned = granularity.attainable(target("ada", Role.MODULATION), (5, 9), 13)
        assert planned == (13 if rounding == "exact" else 10)
        assert granularity.attainable(target("mlp"), (5, 9), 13) == 13

    def test_a_layer_chosen_by_its_scores_is_rounded_down_too(self):
        scores = {target(): clustered()}
        floor = ClusteringAware(0.1, rounding="floor")
        assert (~floor.keep(scores, {target(): 100})[target()]).sum(1).tolist() == [12] * 8
        assert floor.attainable(target(), (8, 32), 100) == 100  # before the scores are known


class TestThreshold(WithNames):
    granularity = ClusteringAware(threshold=0.1)

    def test_a_layer_above_the_threshold_is_pruned_per_row(self):
        scores = {target("a"): noise(8, 32), target("b"): clustered()}
        assert row_variation(scores[target("a")]) < 0.1 < row_variation(scores[target("b")])
        assert [p.name for p in self.granularity.pools(scores, counts(scores, 0.5)).values()] == [
            "layer",
            "row",
        ]


def test_the_coefficient_is_the_papers_equation_10():
    score = torch.tensor([[1.0, 3.0], [5.0, 7.0], [0.0, 2.0]])
    means = np.array([2.0, 6.0, 1.0])
    assert row_variation(score) == pytest.approx(means.var() / means.mean() ** 2)


def test_the_coefficient_of_a_dead_layer_is_zero():
    assert row_variation(torch.zeros(3, 4)) == 0


def test_the_threshold_lies_in_the_widest_gap_on_a_log_scale():
    # On a linear scale the widest gap would be that between 1 and 30.
    assert 0.003 < widest_gap([0.001, 0.003, 0.5, 1.0, 30.0]) < 0.5


def test_a_narrow_gap_is_none():
    assert widest_gap([1.0, 2.0, 3.0, 4.0, 5.0]) == float("inf")
    assert widest_gap([1.0]) == float("inf")
