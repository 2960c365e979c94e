import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditprune.granularity.base import Runs, keep_top, share_evenly


def test_of_equals_the_first_stay():
    score = torch.tensor([[1.0, 2.0, 1.0, 1.0]])
    assert keep_top(score, torch.tensor([2])).tolist() == [[True, True, False, False]]


def test_each_pool_keeps_its_own_number():
    score = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 3.0, 1.0]])
    kept = keep_top(score, torch.tensor([0, 1, 3]))
    assert kept.tolist() == [[False] * 3, [True, False, False], [True] * 3]


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=12, max_size=12),
    st.lists(st.integers(0, 4), min_size=3, max_size=3),
)
def test_it_agrees_with_a_stable_sort_whatever_the_ties(values, num_kept):
    score = np.array(values).reshape(3, 4)
    expected = np.zeros_like(score, dtype=bool)
    for row, count in enumerate(num_kept):
        expected[row, np.argsort(-score[row], kind="stable")[:count]] = True
    kept = keep_top(torch.from_numpy(score).float(), torch.tensor(num_kept))
    assert np.array_equal(kept.numpy(), expected)


def test_pools_are_runs_of_the_row_major_weights():
    pools = Runs("half rows", torch.tensor([1, 1, 1, 1]))
    score = torch.tensor([[1.0, 2.0, 8.0, 7.0], [0.0, 1.0, 5.0, 6.0]])
    assert pools.keep(score).int().tolist() == [[0, 1, 1, 0], [0, 1, 0, 1]]


def test_an_uneven_share_goes_to_the_first():
    assert share_evenly(11, 4).tolist() == [3, 3, 3, 2]
