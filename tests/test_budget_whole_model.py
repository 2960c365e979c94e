import weakref

import numpy as np
import pytest
import torch
from budget_contract import BudgetContract, layer, scores_of, sizes, some_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from ditprune.budget import WholeModel
from ditprune.budget.whole_model import below_common_threshold
from ditprune.granularity import Layer
from ditprune.saliency import OBD, RIA, Magnitude


def best_of_all(scores, num_kept: int) -> list[np.ndarray]:
    """The masks of the best of all scores, side by side; of equals the first stay."""
    flat = np.concatenate([score.flatten().numpy() for score in scores.values()])
    kept = np.zeros(len(flat), dtype=bool)
    kept[np.argsort(-flat, kind="stable")[:num_kept]] = True
    ends = np.cumsum([score.numel() for score in scores.values()])[:-1]
    return np.split(kept, ends)


def demand_best_stay(scores, sparsity: float) -> None:
    numbers = WholeModel(max_sparsity=1.0).allocate(scores, sparsity)
    masks = Layer().keep(scores, numbers)
    num_kept = sum(sizes(scores).values()) - sum(numbers.values())
    for mask, best in zip(masks.values(), best_of_all(scores, num_kept), strict=True):
        assert np.array_equal(mask.flatten().numpy(), best)


class TestWholeModel(BudgetContract):
    budget = WholeModel()

    @pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.5, 0.83, 0.999])
    def test_per_layer_exactly_the_best_scores_of_the_model_stay(self, sparsity):
        demand_best_stay(some_scores(OBD()), sparsity)

    def test_a_raw_score_empties_the_layer_into_which_little_flows_and_shares_do_not(self):
        budget = WholeModel(max_sparsity=1.0)
        quiet = next(iter(some_scores()))
        assert budget.allocate(some_scores(OBD()), 0.5)[quiet] == 210
        assert budget.allocate(some_scores(RIA(0.0)), 0.5)[quiet] < 0.8 * 210

    def test_scores_that_differ_in_their_last_bit_only_are_told_apart(self):
        one = torch.tensor(1.0)
        above, below = (torch.nextafter(one, torch.tensor(end)) for end in (2.0, 0.0))
        weights = {
            layer("a"): torch.stack([one, below, above]).unsqueeze(0),
            layer("b"): torch.stack([below, above, one]).unsqueeze(0),
        }
        for sparsity in (1 / 6, 0.5, 5 / 6):
            demand_best_stay(scores_of(weights, Magnitude()), sparsity)

    def test_of_equal_scores_those_of_the_first_layers_stay(self):
        weights = {layer("a"): torch.ones(2, 3), layer("b"): torch.ones(3, 3)}
        numbers = WholeModel().allocate(scores_of(weights), 0.4)
        assert list(numbers.values()) == [0, 6]

    def test_what_a_full_layer_cannot_give_is_taken_by_the_same_threshold_elsewhere(self):
        weights = {
            layer("low"): torch.arange(1.0, 11).unsqueeze(0),
            layer("mixed"): torch.tensor([[11.0, 12, 13, 14, 15, 16, 90, 91, 92, 93]]),
            layer("high"): torch.arange(50.0, 60).unsqueeze(0),
        }
        numbers = WholeModel(max_sparsity=0.8).allocate(scores_of(weights), 0.5)
        assert list(numbers.values()) == [8, 6, 1]

    @pytest.mark.parametrize(
        ("total", "expected"),
        [(0, [2, 1]), (3, [2, 1]), (4, [2, 2]), (6, [2, 4]), (7, [3, 4]), (8, [3, 4])],
    )
    def test_bounds_hold_whatever_the_total(self, total, expected):
        scores = {layer("high"): torch.full((2, 4), 9.0), layer("low"): torch.ones(2, 4)}
        scores[layer("low")][0, :2] = 10.0
        bounds = {layer("high"): (2, 3), layer("low"): (1, 4)}
        numbers = below_common_threshold(scores, bounds, total)
        assert list(numbers.values()) == expected

    def test_the_least_is_not_exceeded_where_all_scores_are_zero(self):
        scores = {layer("a"): torch.zeros(2, 4), layer("b"): torch.zeros(2, 4)}
        bounds = dict.fromkeys(scores, (2, 7))
        assert list(below_common_threshold(scores, bounds, 4).values()) == [2, 2]

    def test_the_scores_of_more_than_two_layers_are_never_held_together(self, monkeypatch):
        returned, alive = [], []
        score = OBD.score

        def watched(self, weight, stats):
            result = score(self, weight, stats)
            returned.append(weakref.ref(result))
            alive.append(sum(reference() is not None for reference in returned))
            return result

        monkeypatch.setattr(OBD, "score", watched)
        WholeModel().wanted(some_scores(OBD()), 0.5)
        assert len(returned) >= 10
        assert max(alive) <= 2


@settings(deadline=None, max_examples=50)
@given(
    layers=st.lists(
        st.lists(
            st.sampled_from([0.0, 1e-45, 1e-38, 0.5, 1.0, 1.0000001, 2.0, 3e38])
            | st.floats(0, 2.0**127, width=32),
            min_size=1,
            max_size=12,
        ),
        min_size=1,
        max_size=5,
    ),
    sparsity=st.floats(0, 0.999),
)
def test_ties_zeros_and_denormal_scores_are_ranked_like_the_numbers(layers, sparsity):
    weights = {layer(f"up{i}"): torch.tensor([values]) for i, values in enumerate(layers)}
    demand_best_stay(scores_of(weights, Magnitude()), sparsity)
