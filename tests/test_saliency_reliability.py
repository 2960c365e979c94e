import numpy as np
import pytest
import torch
from contracts import SaliencyContract, some_stats, some_weight

from ditprune.activations import ActivationStats
from ditprune.saliency import Energy, Magnitude, ReliableEnergy
from ditprune.saliency.reliability import reliability


def stats_with(rms: np.ndarray, tokens: list[float] | None = None) -> ActivationStats:
    """Statistics whose RMS in every bin and channel is given."""
    stats = ActivationStats(rms.shape[1], num_timestep_bins=rms.shape[0])
    stats.weight = torch.tensor(tokens or [7.0] * len(rms), dtype=torch.float64)
    stats.sum_of_squares = torch.from_numpy(rms**2) * stats.weight.unsqueeze(1)
    return stats


def levels(between: float, within: float, num_bins: int = 4, num_channels: int = 30) -> np.ndarray:
    """RMS of log-normal channels with log-normal noise of the bins."""
    random = np.random.default_rng(0)
    own = between * random.normal(size=num_channels)
    return np.exp(own + within * random.normal(size=(num_bins, num_channels)))


def intraclass_correlation(z: np.ndarray) -> float:
    """ICC(3, k) of Shrout & Fleiss 1979, by the table of a two-way analysis of variance."""
    num_bins, num_channels = z.shape
    channels = num_bins * sum((z[:, j].mean() - z.mean()) ** 2 for j in range(num_channels))
    bins = num_channels * sum((z[t].mean() - z.mean()) ** 2 for t in range(num_bins))
    error = ((z - z.mean()) ** 2).sum() - channels - bins
    between = channels / (num_channels - 1)
    return (between - error / ((num_channels - 1) * (num_bins - 1))) / between


class TestReliableEnergy(SaliencyContract):
    saliency = ReliableEnergy()

    def test_the_reliability_is_the_exponent(self):
        stats = stats_with(levels(0.5, 0.7, num_channels=6))
        alpha = reliability(stats)
        assert 0.2 < alpha < 0.9
        score = self.saliency.score(some_weight(), stats)
        assert torch.allclose(score, Energy(1.0, alpha).score(some_weight(), stats))

    def test_channels_that_keep_their_level_make_it_wanda(self):
        stats = stats_with(np.arange(1.0, 7.0) * np.array([[1.0], [5.0]]))
        score = self.saliency.score(some_weight(), stats)
        assert torch.allclose(score, Energy(1.0, 1.0).score(some_weight(), stats))

    def test_channels_without_a_level_of_their_own_make_it_magnitude(self):
        stats = stats_with(np.array([[1.0, 2.0, 4.0, 1.0, 2.0, 4.0], [4.0, 2.0, 1.0] * 2]) ** 2)
        stats.sum_of_squares[0, 0] *= 1.0001  # equal to the last bit, there would be no levels
        score = self.saliency.score(some_weight(), stats)
        assert torch.allclose(score, Magnitude().score(some_weight(), stats))


@pytest.mark.parametrize("within", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("num_bins", [2, 5])
def test_it_is_the_intraclass_correlation_of_means(within, num_bins):
    rms = levels(0.6, within, num_bins)
    expected = max(0.0, intraclass_correlation(np.log(rms)))
    assert reliability(stats_with(rms)) == pytest.approx(expected)


def test_it_estimates_the_share_of_the_channels_own_variance():
    """kappa = tau^2 / (tau^2 + sigma^2 / T): .39 / .75 as in the reference's table."""
    for between, within, expected in ((0.8, 0.8, 0.8), (0.4, 0.8, 0.5), (0.8, 0.4, 0.941)):
        rms = levels(between, within, num_bins=4, num_channels=20_000)
        assert reliability(stats_with(rms)) == pytest.approx(expected, abs=0.02)


def test_pure_noise_is_not_reliable():
    assert reliability(stats_with(levels(0.0, 0.5, num_channels=20_000))) < 0.04


def test_a_timestep_that_is_louder_in_all_channels_does_not_matter():
    rms = levels(0.5, 0.5)
    louder = rms * np.array([[1.0], [10.0], [100.0], [1000.0]])
    assert reliability(stats_with(louder)) == pytest.approx(reliability(stats_with(rms)))


def test_bins_without_tokens_and_dead_channels_do_not_count():
    rms = levels(0.5, 0.5)
    expected = reliability(stats_with(rms))
    empty = np.insert(rms, 2, 0.0, axis=0)
    assert reliability(stats_with(empty, [7.0, 7.0, 0.0, 7.0, 7.0])) == pytest.approx(expected)
    dead = np.insert(rms, [3, 9], 0.0, axis=1)
    assert reliability(stats_with(dead)) == pytest.approx(expected)
    dead[1:, 3] = 1.0  # silent in one bin only: its log has no number either
    assert reliability(stats_with(dead)) == pytest.approx(expected)


def test_of_one_bin_one_channel_or_equal_channels_nothing_speaks_against_wanda():
    assert reliability(stats_with(levels(0.5, 0.5, num_bins=1))) == 1.0
    assert reliability(stats_with(levels(0.5, 0.5, num_channels=1))) == 1.0
    assert reliability(stats_with(np.ones((3, 4)))) == 1.0
    assert reliability(stats_with(np.zeros((3, 4)))) == 1.0


def test_the_statistics_of_real_calls_give_what_their_formula_says():
    stats = some_stats()
    z = 0.5 * np.log((stats.sum_of_squares / stats.weight.unsqueeze(1)).numpy())
    assert reliability(stats) == pytest.approx(max(0.0, intraclass_correlation(z)))
