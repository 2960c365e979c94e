import itertools

import numpy as np
import pytest
import torch
from budget_contract import BudgetContract, layer, scores_of, sizes, some_scores

from ditprune.budget import WaterFilling, WholeModel
from ditprune.saliency import OBD, Magnitude


def lost(scores, numbers) -> float:
    """Sum over layers of the smallest shares of W^2 E[x^2], from the definition."""
    total = 0.0
    for target, number in numbers.items():
        x2 = scores.stats[target].energy().numpy()
        energy = np.sort((scores.weights[target].double().numpy() ** 2 * x2).flatten())
        total += energy[:number].sum() / energy.sum()
    return total


def tiny_scores(seed: int):
    generator = torch.Generator().manual_seed(seed)
    weights = {
        layer(f"up{i}"): torch.randn(shape, generator=generator).pow(1 + 2 * (i % 2))
        for i, shape in enumerate([(2, 5), (3, 4), (4, 2)])
    }
    inputs = {t: torch.randn(3, w.shape[1], generator=generator) for t, w in weights.items()}
    return scores_of(weights, Magnitude(), inputs)


class TestWaterFilling(BudgetContract):
    budget = WaterFilling()

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("deviation", [0.2, 1.0])
    def test_no_other_numbers_within_the_limits_lose_less(self, seed, deviation):
        """Brute force over all numbers of weights of three tiny layers."""
        scores, sparsity = tiny_scores(seed), 0.5
        budget = WaterFilling(max_deviation=deviation, max_sparsity=0.9)
        numbers = budget.allocate(scores, sparsity)
        limits = [
            range(int(max(0.5 - deviation, 0) * n), int(min(0.5 + deviation, 0.9) * n + 1e-6) + 1)
            for n in sizes(scores).values()
        ]
        least = min(
            lost(scores, dict(zip(scores, choice, strict=True)))
            for choice in itertools.product(*limits)
            if sum(choice) == 15
        )
        assert lost(scores, numbers) == pytest.approx(least, rel=1e-6)
        uniform = dict(zip(scores, (5, 6, 4), strict=True))
        assert least < 0.99 * lost(scores, uniform)

    def test_how_loud_a_layer_is_does_not_matter_unlike_in_the_whole_model(self):
        scores = tiny_scores(0)
        louder = dict(scores.weights)
        first = next(iter(louder))
        louder[first] = 1024 * louder[first]
        budget, raw = WaterFilling(max_deviation=1.0), WholeModel()
        before, after = (scores_of(w, OBD()) for w in (dict(scores.weights), louder))
        assert budget.allocate(before, 0.5) == budget.allocate(after, 0.5)
        assert raw.allocate(before, 0.5) != raw.allocate(after, 0.5)

    def test_the_recipes_saliency_does_not_matter(self):
        budget = WaterFilling()
        energy, magnitude = (some_scores(saliency) for saliency in (OBD(), Magnitude()))
        assert budget.allocate(energy, 0.5) == budget.allocate(magnitude, 0.5)

    def test_a_layer_of_few_large_weights_gives_more_up_to_the_limit(self):
        peaked = torch.full((10, 10), 1e-3)
        peaked[0, :5] = 1.0
        scores = scores_of({layer("peaked"): peaked, layer("flat"): torch.ones(10, 10)})
        for deviation, expected in ((0.0, [50, 50]), (0.15, [65, 35]), (1.0, [95, 5])):
            budget = WaterFilling(max_deviation=deviation)
            assert list(budget.allocate(scores, 0.5).values()) == expected

    def test_a_dead_layer_gives_as_much_as_it_may(self):
        scores = tiny_scores(0)
        dead = next(iter(scores))
        scores.stats[dead].sum_of_squares.zero_()
        assert WaterFilling(max_deviation=0.2).allocate(scores, 0.5)[dead] == 7

    def test_a_negative_deviation_is_refused(self):
        with pytest.raises(ValueError, match=r"got -0\.1"):
            WaterFilling(max_deviation=-0.1)
