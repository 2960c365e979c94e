import numpy as np
import pytest
import torch
from contracts import counts, target

from ditprune.granularity import NofM
from ditprune.targets import PruneTarget


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def keep(granularity: NofM, score: torch.Tensor) -> torch.Tensor:
    sparsity = 1 - granularity.num_kept / granularity.group_size
    scores = {target(): score}
    return granularity.keep(scores, counts(scores, sparsity))[target()]


def by_sorting(score: torch.Tensor, num_kept: int, group_size: int) -> np.ndarray:
    """Every group by itself, by a stable sort."""
    expected = np.zeros(score.shape, dtype=bool)
    for row, weights in enumerate(score.numpy()):
        for start in range(0, len(weights), group_size):
            order = np.argsort(-weights[start : start + group_size], kind="stable")
            expected[row, start + order[:num_kept]] = True
    return expected


@pytest.mark.parametrize(("num_kept", "group_size"), [(2, 4), (1, 4), (4, 8), (3, 4), (1, 2)])
class TestEveryPattern:
    @pytest.mark.parametrize(
        "score",
        [
            noise(6, 16),
            torch.ones(6, 16),
            torch.zeros(6, 16),
            noise(64, 64).bfloat16().float(),
            (noise(6, 16) * 3).round(),
        ],
        ids=["noise", "equal", "zero", "bfloat16", "ties"],
    )
    def test_of_each_group_the_best_stay_and_of_equals_the_first(self, num_kept, group_size, score):
        kept = keep(NofM(num_kept, group_size), score).numpy()
        assert (kept.reshape(-1, group_size).sum(1) == num_kept).all()
        assert np.array_equal(kept, by_sorting(score, num_kept, group_size))

    def test_pools_take_other_scores_and_keep_as_many(self, num_kept, group_size):
        scores = {target(): noise(6, 16)}
        wanted = counts(scores, 1 - num_kept / group_size)
        pools = NofM(num_kept, group_size).pools(scores, wanted)[target()]
        moved = pools.keep(noise(6, 16, seed=1)).reshape(-1, group_size)
        assert (moved.sum(1) == num_kept).all()

    def test_layers_say_the_pattern(self, num_kept, group_size):
        granularity, scores = NofM(num_kept, group_size), {target(): noise(2, 8)}
        pools = granularity.pools(scores, counts(scores, 1 - num_kept / group_size))
        assert pools[target()].name == granularity.label(target()) == f"{num_kept}:{group_size}"


def test_a_group_lies_inside_a_row_along_the_inputs():
    score = torch.arange(16.0).reshape(4, 4)
    assert keep(NofM(), score).int().tolist() == [[0, 0, 1, 1]] * 4


def test_a_pool_for_each_group_takes_no_memory_for_each():
    scores = {target(): noise(64, 64)}
    pools = NofM().pools(scores, counts(scores, 0.5))[target()]
    assert len(pools.num_kept) == 64 * 16
    assert pools.num_kept.untyped_storage().nbytes() == 8


@pytest.mark.parametrize("call", ["attainable", "pools"])
class TestRefusals:
    def ask(self, call: str, layer: PruneTarget, shape: tuple[int, int], num_pruned: int) -> None:
        if call == "attainable":
            NofM().attainable(layer, shape, num_pruned)
        else:
            NofM().pools({layer: torch.ones(shape)}, {layer: num_pruned})

    def test_inputs_that_cannot_be_grouped_are_refused_by_the_layers_name(self, call):
        with pytest.raises(ValueError, match="block.7 has 6 inputs.*ignore"):
            self.ask(call, target("block.7"), (8, 6), 24)

    @pytest.mark.parametrize("num_pruned", [31, 33, 20])
    def test_any_other_sparsity_is_refused_by_the_layers_name(self, call, num_pruned):
        with pytest.raises(ValueError, match="removes 32 of the 64 .*block.7.*sparsity: 0.5"):
            self.ask(call, target("block.7"), (8, 8), num_pruned)


def test_what_it_removes_is_attainable():
    assert NofM(1, 4).attainable(target(), (8, 8), 48) == 48


@pytest.mark.parametrize("pattern", [(0, 4), (4, 4), (5, 4), (-1, 4), (0, 0)])
def test_groups_that_lose_nothing_or_everything_are_refused(pattern):
    with pytest.raises(ValueError, match="num_kept"):
        NofM(*pattern)
