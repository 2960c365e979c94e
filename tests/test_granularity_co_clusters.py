import warnings

import numpy as np
import pytest
import torch
from contracts import GranularityContract, counts, target

from ditprune.granularity import CoClusters, Layer
from ditprune.granularity import co_clusters as module
from ditprune.granularity.row_clusters import Clusters

ROWS = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [10, 14, 16]))
COLUMNS = np.random.default_rng(2).permutation(np.repeat([0, 1, 2], [20, 12, 18]))


def planted(loudness: float = 1.0) -> torch.Tensor:
    """Noise that is five times as large where rows and columns of the same kind meet."""
    noise = 0.5 + torch.rand(40, 50, generator=torch.Generator().manual_seed(0))
    block = torch.from_numpy(ROWS[:, None] == COLUMNS).float()
    scale = torch.logspace(0, np.log10(loudness), 40).unsqueeze(1)
    return noise * (1 + 4 * block) * scale


def pools_of(granularity: CoClusters, score: torch.Tensor, sparsity: float = 0.5) -> Clusters:
    scores = {target(): score}
    pools = granularity.pools(scores, counts(scores, sparsity))[target()]
    assert isinstance(pools, Clusters)
    return pools


def same_clusters(labels: torch.Tensor, truth: np.ndarray) -> bool:
    """Equal but for the clusters' numbers."""
    pairs = set(zip(labels.tolist(), truth.tolist(), strict=True))
    return len(pairs) == len(set(truth.tolist())) == len(set(labels.tolist()))


class TestCoClusters(GranularityContract):
    granularity = CoClusters()


@pytest.mark.parametrize("loudness", [1.0, 1000.0])
def test_planted_blocks_are_found_however_loud_their_rows_are(loudness):
    pools = pools_of(CoClusters(num_clusters=3), planted(loudness))
    assert same_clusters(pools.row_labels, ROWS)
    assert same_clusters(pools.column_labels, COLUMNS)
    assert pools.name == "3 x 3 clusters"


def test_rows_and_columns_that_are_not_sampled_join_their_own(monkeypatch):
    monkeypatch.setattr(module, "MOST_CLUSTERED", 20)
    pools = pools_of(CoClusters(num_clusters=3), planted(1000.0))
    assert same_clusters(pools.row_labels, ROWS)
    assert same_clusters(pools.column_labels, COLUMNS)


def test_rho_0_lets_every_block_give_alike_unlike_layer():
    score = planted()
    pools = pools_of(CoClusters(num_clusters=3, rho=0.0), score)
    kept, layer = pools.keep(score), Layer().keep({target(): score}, {target(): 1000})[target()]
    strong = torch.from_numpy(ROWS[:, None] == COLUMNS)
    assert layer[strong].float().mean() == 1
    assert kept[strong].float().mean() == pytest.approx(0.5, abs=0.01)


def test_rho_1_is_layer():
    score = planted(3.0)
    pools = pools_of(CoClusters(num_clusters=3, rho=1.0), score, 0.3)
    assert torch.equal(
        pools.keep(score), Layer().keep({target(): score}, {target(): 600})[target()]
    )


def test_one_cluster_is_layer():
    score = planted(100.0)
    pools = pools_of(CoClusters(num_clusters=1), score)
    assert torch.equal(
        pools.keep(score), Layer().keep({target(): score}, {target(): 1000})[target()]
    )


@pytest.mark.parametrize(
    "score",
    [
        torch.ones(12, 4),
        torch.zeros(12, 4),
        torch.rand(1, 12),
        torch.rand(12, 1),
        torch.rand(2, 2),
        torch.rand(12, 1) @ torch.rand(1, 4),
        torch.eye(12),
        torch.cat([torch.zeros(6, 6), torch.rand(6, 6)]),
        torch.full((12, 2), 1e-38) * torch.rand(2),
        torch.full((12, 2), 1e38) * torch.rand(2),
    ],
)
def test_degenerate_scores_are_pruned_exactly_and_without_a_warning(score):
    wanted = counts({target(): score}, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = CoClusters().keep({target(): score}, wanted)[target()]
    assert int((~mask).sum()) == score.numel() // 2


def test_no_cluster_and_no_mixture_are_refused():
    with pytest.raises(ValueError, match="num_clusters"):
        CoClusters(num_clusters=0)
    with pytest.raises(ValueError, match="rho"):
        CoClusters(rho=2.0)


def test_what_it_will_be_is_not_known_beforehand():
    assert CoClusters().label(target()) == "co-clusters"
