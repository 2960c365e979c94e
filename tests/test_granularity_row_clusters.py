import warnings

import numpy as np
import pytest
import torch
from contracts import GranularityContract, counts, target
from hypothesis import given
from hypothesis import strategies as st

from ditprune.granularity import Layer, Row, RowClusters
from ditprune.granularity.clustering_aware import row_variation
from ditprune.granularity.row_clusters import (
    Clusters,
    block_pools,
    largest_remainder,
    mixture_labels,
    shares,
)
from ditprune.targets import Role


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def two_groups(num_quiet: int = 20, num_loud: int = 12, gap: float = 100.0) -> torch.Tensor:
    """Quiet and loud rows in turns, as far as both last."""
    loud = torch.arange(num_quiet + num_loud) % 2 == 1
    loud[2 * min(num_quiet, num_loud) :] = num_loud > num_quiet
    weights = 0.5 + noise(num_quiet + num_loud, 64)
    return weights * torch.where(loud, gap, 1.0).unsqueeze(1)


def pools_of(granularity: RowClusters, score: torch.Tensor, sparsity: float = 0.5, **kind):
    scores = {target(**kind): score}
    pools = granularity.pools(scores, counts(scores, sparsity))[target(**kind)]
    assert isinstance(pools, Clusters)
    return pools


def layer_mask(score: torch.Tensor, sparsity: float = 0.5) -> torch.Tensor:
    scores = {target(): score}
    return Layer().keep(scores, counts(scores, sparsity))[target()]


class TestMixture(GranularityContract):
    granularity = RowClusters()

    def test_two_loudness_groups_are_found(self):
        pools = pools_of(self.granularity, two_groups())
        quiet_first = pools.row_labels.numpy() == pools.row_labels[0].item()
        assert np.array_equal(quiet_first, two_groups().mean(1).numpy() < 5)
        assert pools.name == "2 row clusters"

    def test_rows_that_are_alike_are_one_cluster(self):
        assert pools_of(self.granularity, noise(200, 64)).name == "1 row cluster"

    def test_no_more_are_found_than_may_be(self):
        levels = 10.0 ** torch.arange(5).repeat_interleave(20).unsqueeze(1)
        score = noise(100, 64) * levels
        assert pools_of(RowClusters(), score).name == "5 row clusters"
        assert pools_of(RowClusters(max_clusters=3), score).name == "3 row clusters"


class TestChunks(GranularityContract):
    granularity = RowClusters(clusters="chunks")

    def test_adaln_is_cut_into_the_six_that_the_width_tells(self):
        pools = pools_of(self.granularity, noise(48, 8), role=Role.MODULATION)
        assert pools.row_labels.tolist() == [i // 8 for i in range(48)]

    @pytest.mark.parametrize(
        ("shape", "role"),
        [
            ((48, 8), Role.MLP_UP),
            ((50, 8), Role.MODULATION),
            ((80, 8), Role.MODULATION),
            ((4, 8), Role.MODULATION),
        ],
    )
    def test_any_other_layer_is_one_cluster(self, shape, role):
        pools = pools_of(self.granularity, noise(*shape), role=role)
        assert pools.row_labels.unique().tolist() == [0]


class TestLimits:
    @pytest.mark.parametrize("rho", [None, 0.0, 0.3, 1.0])
    @pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.97])
    def test_one_cluster_is_layer_whatever_rho(self, rho, sparsity):
        score = (two_groups() * 3).round()  # full of ties
        pools = pools_of(RowClusters(max_clusters=1, rho=rho), score, sparsity)
        assert torch.equal(pools.keep(score), layer_mask(score, sparsity))

    @pytest.mark.parametrize("sparsity", [0.1, 0.5])
    def test_rho_1_is_layer(self, sparsity):
        score = two_groups(gap=2.0)
        pools = pools_of(RowClusters(rho=1.0), score, sparsity)
        assert len(pools.num_kept) == 2
        assert torch.equal(pools.keep(score), layer_mask(score, sparsity))

    @pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.99])
    def test_a_cluster_for_each_row_and_rho_0_is_row(self, sparsity):
        score = two_groups(8, 5)[:, :9]
        wanted = counts({target(): score}, sparsity)
        each, none = np.arange(13), np.zeros(9, dtype=np.int64)
        mask = block_pools(score, each, none, wanted[target()], 0.0).keep(score)
        assert torch.equal(mask, Row().keep({target(): score}, wanted)[target()])

    def test_rho_0_lets_every_cluster_give_alike_where_layer_empties_the_quiet_one(self):
        score = two_groups(20, 12)
        quiet = score.mean(1) < 5
        pools = pools_of(RowClusters(rho=0.0), score, 0.625)
        assert int(layer_mask(score, 0.625)[quiet].sum()) == 0
        assert pools.keep(score)[quiet].float().mean() == 0.375

    def test_a_cluster_keeps_a_twentieth_even_if_layer_would_empty_it(self):
        score = two_groups(20, 12)
        kept = pools_of(RowClusters(rho=1.0), score, 0.625).keep(score)
        quiet = score.mean(1) < 5
        assert int(kept[quiet].sum()) == 20 * 64 // 20
        assert int((~kept).sum()) == 0.625 * 32 * 64

    def test_rho_mixes_linearly(self):
        score = two_groups(gap=2.0)
        even, filled, mixed = (
            pools_of(RowClusters(rho=rho), score).num_kept for rho in (0.0, 1.0, 0.25)
        )
        assert not torch.equal(even, filled)
        assert (mixed - 0.75 * even - 0.25 * filled).abs().max() < 1

    def test_by_default_rho_falls_with_the_variation_of_the_rows(self):
        score = two_groups(gap=2.0)
        rho = 0.1 / (0.1 + row_variation(score))
        assert 0.1 < rho < 0.9
        default, explicit = (pools_of(RowClusters(rho=r), score) for r in (None, rho))
        assert torch.equal(default.num_kept, explicit.num_kept)


@pytest.mark.parametrize("clusters", ["mixture", "chunks"])
@pytest.mark.parametrize(
    "score",
    [
        torch.ones(12, 2),
        torch.zeros(12, 2),
        noise(1, 12),
        noise(2, 6),
        noise(12, 1),
        noise(1, 1),
        torch.tensor([[0.0], [0.0], [0.0], [5.0]]).expand(4, 6),
        torch.eye(12),
        torch.full((12, 2), 1e-38),
        torch.full((12, 2), 1e38),
    ],
)
def test_degenerate_scores_are_pruned_exactly_and_without_a_warning(clusters, score):
    wanted = counts({target(role=Role.MODULATION): score}, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (mask,) = RowClusters(clusters).keep({next(iter(wanted)): score}, wanted).values()
    assert int((~mask).sum()) == score.numel() // 2


def test_blocks_compete_by_themselves():
    score = torch.tensor([[1.0, 9.0, 2.0], [5.0, 3.0, 4.0], [8.0, 6.0, 7.0]])
    rows, columns = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 0])
    pools = Clusters("blocks", rows, columns, torch.tensor([[2, 1], [1, 0]]))
    assert pools.keep(score).int().tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 1]]


def test_rows_are_compared_in_proportion_and_not_in_difference():
    # On a linear scale the long tail of a log-normal would take several Gaussians.
    spread = torch.randn(400, 1, generator=torch.Generator().manual_seed(5))
    score = (0.5 + noise(400, 16)) * (1.5 * spread).exp()
    assert pools_of(RowClusters(), score).name == "1 row cluster"
    linear = score.mean(1).double().numpy()
    assert len(set(mixture_labels(linear / linear.max(), 8))) > 1


def test_differences_in_loudness_that_nobody_would_notice_divide_nobody():
    score = torch.tensor([1.0, 1.004]).repeat(50).unsqueeze(1).expand(100, 8)
    assert pools_of(RowClusters(), score).name == "1 row cluster"
    assert pools_of(RowClusters(), score**50).name == "2 row clusters"


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=9),
    st.floats(0, 1),
)
def test_budgets_add_up_exactly_and_no_cluster_keeps_more_than_it_has(clusters, rho):
    sizes = np.array([float(size) for size, _ in clusters])
    filled = np.array([float(round(size * share)) for size, share in clusters])
    kept = shares(sizes, filled, rho)
    density = filled.sum() / sizes.sum()
    assert kept.sum() == filled.sum()
    assert (kept <= sizes).all()
    assert (kept >= np.floor(min(0.05, density) * sizes)).all()


def test_what_rounding_leaves_goes_to_the_largest_remainders_and_then_to_the_first():
    assert largest_remainder(np.array([1.2, 2.7, 0.6, 1.5]), 6).tolist() == [1, 3, 1, 1]
    assert largest_remainder(np.full(400, 0.5), 200).tolist() == [1] * 200 + [0] * 200


@pytest.mark.parametrize("rho", [-0.1, 1.5, float("nan")])
def test_a_rho_that_mixes_nothing_is_refused(rho):
    with pytest.raises(ValueError, match="rho"):
        RowClusters(rho=rho)


def test_no_cluster_at_all_is_refused():
    with pytest.raises(ValueError, match="max_clusters"):
        RowClusters(max_clusters=0)


def test_what_it_will_be_is_not_known_beforehand():
    assert RowClusters().label(target()) == "row clusters"
