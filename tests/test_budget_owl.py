import numpy as np
import pytest
import torch
from budget_contract import BudgetContract, layer, scores_of, sizes, some_scores

from ditprune.budget import OWL
from ditprune.saliency import Magnitude
from ditprune.targets import Role


def with_outliers(*numbers: int, size: int = 100) -> torch.Tensor:
    """Ones, and so many thousands in each run of `size` weights."""
    rows = [[1000.0] * number + [1.0] * (size - number) for number in numbers]
    return torch.tensor(rows)


def four_blocks(counts=(0, 1, 2, 4)):
    return scores_of({layer("up", block=i): with_outliers(n) for i, n in enumerate(counts)})


class TestOWL(BudgetContract):
    budget = OWL()

    def test_it_agrees_with_the_published_formula(self):
        """Yin et al. 2024: D = share of |W| ||X|| above M times the mean, of a whole block;
        kept = (D - min) / (max - min) 2 lambda - mean of that + 1 - s."""
        generator = torch.Generator().manual_seed(7)
        weights, inputs = {}, {}
        for block in range(4):
            for name, role in (("q", Role.ATTN_Q), ("up", Role.MLP_UP)):
                weight = torch.randn(40, 25, generator=generator).pow(1 + 2 * (block % 3))
                weights[layer(name, role, block)] = weight
                inputs[layer(name, role, block)] = torch.randn(9, 25, generator=generator) * block
        inputs[layer("q", Role.ATTN_Q, 0)] += 1.0
        shares = []
        for block in range(4):
            metric = np.concatenate(
                [
                    (w.abs().numpy() * np.linalg.norm(inputs[t].numpy(), axis=0) / 3).flatten()
                    for t, w in weights.items()
                    if t.block == block
                ]
            )
            shares.append(100 * (metric > 5 * metric.mean()).mean())
        shares = np.array(shares)
        kept = (shares - shares.min()) / (shares.max() - shares.min()) * 2 * 0.08
        kept = kept - kept.mean() + 0.3
        numbers = OWL().allocate(scores_of(weights, Magnitude(), inputs), 0.7)
        for target, number in numbers.items():
            assert abs(number - 1000 * (1 - kept[target.block])) < 1.01

    def test_the_block_with_most_outliers_gives_two_lambda_less_than_that_with_none(self):
        # Of 100 weights: 0, 1, 2 and 4 outliers; the mean deviation is taken off.
        numbers = OWL(spread=0.08).allocate(four_blocks(), 0.5)
        assert list(numbers.values()) == [57, 53, 49, 41]

    def test_a_block_is_one_distribution_and_a_layer_need_not_be(self):
        weights = {
            layer("q", Role.ATTN_Q, 0): with_outliers(6),
            layer("up", block=0): with_outliers(0),
            layer("q", Role.ATTN_Q, 1): with_outliers(2),
            layer("up", block=1): with_outliers(2),
        }
        blocks = OWL(per="block").allocate(scores_of(weights), 0.5)
        assert list(blocks.values()) == [42, 42, 58, 58]
        layers = OWL(per="layer").allocate(scores_of(weights), 0.5)
        # Shares .06, 0, .02 and .02 are 8, -8, 2.67 and 2.67 % off, 1.33 % in the mean.
        assert list(layers.values()) == [41, 57, 51, 51]

    def test_equal_shares_make_it_uniform_and_divide_nothing_by_zero(self):
        numbers = OWL().allocate(four_blocks((2, 2, 2, 2)), 0.5)
        assert list(numbers.values()) == [50, 50, 50, 50]

    def test_blocks_of_two_kinds_with_the_same_index_are_apart(self):
        weights = {
            layer("up"): with_outliers(0),
            type(layer("up"))("single_blocks.0.up", Role.MLP_UP, 0, 1): with_outliers(4),
        }
        assert list(OWL().allocate(scores_of(weights), 0.5).values()) == [58, 42]

    def test_the_recipes_saliency_does_not_matter(self):
        numbers = OWL().allocate(some_scores(), 0.5)
        assert numbers == OWL().allocate(some_scores(Magnitude()), 0.5)
        uniform = {target: 0.5 * size for target, size in sizes(some_scores()).items()}
        assert max(abs(numbers[t] - uniform[t]) for t in numbers) > 5

    def test_a_block_is_weighed_by_its_size_when_the_budget_is_met(self):
        weights = {
            layer("up", block=0): with_outliers(0, 0, 0),
            layer("up", block=1): with_outliers(4),
        }
        # 58 and 42 % would be 54 % of all.
        assert list(OWL().allocate(scores_of(weights), 0.5).values()) == [162, 38]

    def test_what_makes_no_outlier_is_refused(self):
        with pytest.raises(ValueError, match=r"got 0\.0 and 0\.08"):
            OWL(outlier_ratio=0.0)
        with pytest.raises(ValueError, match=r"got 5\.0 and -0\.1"):
            OWL(spread=-0.1)
