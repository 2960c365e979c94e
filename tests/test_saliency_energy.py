import numpy as np
import pytest
import torch
from contracts import SaliencyContract, counts, some_stats, some_weight, target

from ditprune.activations import ActivationStats
from ditprune.granularity import Layer, Row
from ditprune.granularity.base import Granularity
from ditprune.saliency import Energy, Magnitude


def mask(granularity: Granularity, score: torch.Tensor) -> torch.Tensor:
    scores = {target(): score}
    return granularity.keep(scores, counts(scores, 0.5))[target()]


class TestEnergy(SaliencyContract):
    saliency = Energy()

    def test_the_default_squares_the_weight_and_not_the_activation(self):
        stats = ActivationStats(2)
        stats.add(torch.tensor([[3.0, 1.0]]))
        score = self.saliency.score(torch.tensor([[2.0, -4.0]]), stats)
        assert score.tolist() == [[12.0, 16.0]]


class TestWanda(SaliencyContract):
    saliency = Energy(weight_exponent=1.0, activation_exponent=1.0)

    def test_per_row_masks_equal_those_of_the_published_formula(self):
        """Sun et al. 2023, Algorithm 1: |W| * ||X||_2, the lowest of each row go."""
        x = np.random.default_rng(0).normal(size=(50, 12)) * np.arange(1, 13)
        weight = np.random.default_rng(1).normal(size=(8, 12))
        metric = np.abs(weight) * np.linalg.norm(x, axis=0)
        expected = np.ones_like(metric, dtype=bool)
        np.put_along_axis(expected, np.argsort(metric, axis=1)[:, :6], False, axis=1)
        stats = ActivationStats(12)
        stats.add(torch.from_numpy(x).float())
        score = self.saliency.score(torch.from_numpy(weight).float(), stats)
        assert np.array_equal(mask(Row(), score).numpy(), expected)


@pytest.mark.parametrize("granularity", [Row(), Layer()])
def test_only_the_ratio_of_the_exponents_decides(granularity):
    weight, stats = some_weight(), some_stats()
    squared = mask(granularity, Energy(2.0, 1.0).score(weight, stats))
    rooted = mask(granularity, Energy(1.0, 0.5).score(weight, stats))
    wanda = mask(granularity, Energy(1.0, 1.0).score(weight * stats.rms().float() ** 3, stats))
    assert torch.equal(squared, rooted)
    assert not torch.equal(squared, wanda)


def test_without_activations_it_ranks_like_magnitude():
    weight, stats = some_weight(), some_stats()
    assert torch.equal(
        mask(Layer(), Energy(1.0, 0.0).score(weight, stats)),
        mask(Layer(), Magnitude().score(weight, stats)),
    )


def test_exponents_that_cannot_rank_are_refused():
    with pytest.raises(ValueError, match="got 0.0 and 1.0"):
        Energy(0.0, 1.0)
    with pytest.raises(ValueError, match="got 2.0 and -1.0"):
        Energy(2.0, -1.0)


class TestEnergyOfTheLoudestTimesteps(SaliencyContract):
    saliency = Energy(1.0, 1.0, over_timesteps="max")

    def test_each_channel_counts_by_the_timesteps_where_it_is_loudest(self):
        stats = ActivationStats(2, num_timestep_bins=3)  # nothing falls into the last bin
        stats.add(torch.tensor([[1.0, 6.0]]), 0)
        stats.add(torch.tensor([[2.0, 0.0]] * 8), 1)
        score = self.saliency.score(torch.tensor([[1.0, -10.0]]), stats)
        assert score.tolist() == [[2.0, 60.0]]
        mean = Energy(1.0, 1.0).score(torch.ones(1, 2), stats)
        assert torch.allclose(mean, torch.tensor([[33 / 9, 4.0]]).sqrt())

    def test_of_one_bin_it_is_the_mean(self):
        stats = ActivationStats(6)
        stats.add(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
        expected = Energy(1.0, 1.0).score(some_weight(), stats)
        assert torch.equal(self.saliency.score(some_weight(), stats), expected)
