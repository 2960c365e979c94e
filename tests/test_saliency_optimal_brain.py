import numpy as np
import pytest
import torch
from contracts import SaliencyContract, some_weight

from ditprune.activations import ActivationStats
from ditprune.saliency import OBD, OBS, Energy


def inputs(num_tokens: int = 60, num_inputs: int = 6) -> np.ndarray:
    """Channels of unlike loudness, two of which say almost the same."""
    x = np.random.default_rng(0).normal(size=(num_tokens, num_inputs)) * np.arange(
        1, num_inputs + 1
    )
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]
    return x


def gram_stats(x: np.ndarray) -> ActivationStats:
    stats = ActivationStats(x.shape[1], num_timestep_bins=2, with_gram=True)
    half = len(x) // 2
    stats.add(torch.from_numpy(x[:half]).float(), 0)
    stats.add(torch.from_numpy(x[half:]).float(), 1)
    return stats


class TestOBD(SaliencyContract):
    saliency = OBD()

    def test_it_is_what_one_weight_takes_from_the_outputs_energy(self):
        """By its definition: the mean square of w x, measured."""
        x, weight = inputs(), some_weight()
        score = self.saliency.score(weight, gram_stats(x))
        for i, j in ((0, 0), (3, 5), (2, 1)):
            expected = np.mean((weight[i, j].item() * x[:, j]) ** 2)
            assert score[i, j].item() == pytest.approx(expected, rel=1e-5)

    def test_it_ranks_like_wanda_and_not_like_the_papers_score(self):
        weight, stats = some_weight(), gram_stats(inputs())
        order = self.saliency.score(weight, stats).flatten().argsort()
        assert torch.equal(order, Energy(1.0, 1.0).score(weight, stats).flatten().argsort())
        assert not torch.equal(order, Energy(2.0, 1.0).score(weight, stats).flatten().argsort())


class TestOBS:
    """The laws of SaliencyContract, with a Gram matrix."""

    saliency = OBS()

    def test_it_asks_for_the_gram_matrix_and_says_so_if_there_is_none(self):
        assert OBS.needs_gram
        with pytest.raises(RuntimeError, match="without a Gram matrix"):
            self.saliency.score(some_weight(), ActivationStats(6))

    def test_scores_have_the_weights_shape_in_float32_and_are_finite(self):
        for dtype in (torch.float32, torch.bfloat16):
            score = self.saliency.score(some_weight().to(dtype), gram_stats(inputs()))
            assert score.shape == (4, 6)
            assert score.dtype is torch.float32
            assert score.isfinite().all()
            assert (score >= 0).all()

    def test_weight_and_statistics_are_left_as_they_were(self):
        weight, stats = some_weight(), gram_stats(inputs())
        self.saliency.score(weight, stats)
        assert torch.equal(weight, some_weight())
        assert torch.equal(stats.pack(), gram_stats(inputs()).pack())

    def test_neither_the_order_of_the_rows_nor_the_sign_matters(self):
        order, stats = torch.tensor([2, 0, 3, 1]), gram_stats(inputs())
        score = self.saliency.score(some_weight(), stats)
        assert torch.equal(self.saliency.score(some_weight()[order], stats), score[order])
        assert torch.equal(self.saliency.score(-some_weight(), stats), score)

    def test_it_agrees_with_the_published_formula(self):
        """SparseGPT: W^2 / diag((X^T X / n + damping mean(diag) I)^-1)."""
        x, weight = inputs(), some_weight()
        hessian = x.T @ x / len(x)
        damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(6)
        expected = weight.numpy() ** 2 / np.diag(np.linalg.inv(damped))
        assert np.allclose(self.saliency.score(weight, gram_stats(x)), expected, rtol=1e-5)

    def test_it_is_the_loss_that_the_rows_other_weights_cannot_make_up_for(self):
        """By its definition: a least-squares fit of the row's output without one input."""
        x, weight = inputs(), some_weight()
        score = OBS(damping=1e-9).score(weight, gram_stats(x))
        for i, j in ((0, 0), (1, 5), (2, 1)):
            output, others = x @ weight[i].numpy(), np.delete(x, j, axis=1)
            fit = others @ np.linalg.lstsq(others, output, rcond=None)[0]
            assert score[i, j].item() == pytest.approx(np.mean((output - fit) ** 2), rel=1e-4)

    def test_a_channel_that_another_repeats_is_worth_less_unlike_in_obd(self):
        stats, weight = gram_stats(inputs(600)), torch.ones(1, 6)
        brain_damage, surgeon = (s.score(weight, stats)[0] for s in (OBD(), OBS(1e-6)))
        assert surgeon[0] < 0.1 * brain_damage[0]
        assert surgeon[5] > 0.9 * brain_damage[5]

    def test_without_correlation_it_is_obd(self):
        x = np.diag([1.0, 2.0, 0.5, 3.0, 1.5, 1.0])
        scores = [s.score(some_weight(), gram_stats(x)) for s in (OBD(), OBS(1e-9))]
        assert torch.allclose(*scores)

    def test_weights_on_a_dead_channel_are_worth_nothing_and_the_others_what_they_were(self):
        x, weight = inputs(), some_weight()
        x[:, 2] = 0
        score = self.saliency.score(weight, gram_stats(x))
        assert not score[:, 2].any()
        rest = [0, 1, 3, 4, 5]
        alone = self.saliency.score(weight[:, rest], gram_stats(x[:, rest]))
        assert torch.allclose(score[:, rest], alone)

    def test_a_layer_into_which_nothing_flows_scores_zero(self):
        score = self.saliency.score(some_weight().bfloat16(), gram_stats(np.zeros((4, 6))))
        assert torch.equal(score, torch.zeros(4, 6))

    def test_fewer_tokens_than_channels_break_nothing(self):
        score = OBS(damping=1e-20).score(some_weight(), gram_stats(inputs(num_tokens=3)))
        assert score.isfinite().all()
        assert score.any()

    def test_a_matrix_that_is_not_positive_definite_is_damped_ten_times_as_much_until_it_is(self):
        stats = gram_stats(np.eye(6))
        stats.gram[0, 1] = stats.gram[1, 0] = 1.05  # eigenvalues 1 - 1.05 and 1 + 1.05
        hessian = stats.second_moment().numpy()
        expected = 1 / np.diag(np.linalg.inv(hessian + 0.1 / 6 * np.eye(6)))
        score = OBS(damping=0.01).score(torch.ones(2, 6), stats)
        assert np.allclose(score[1], expected, rtol=1e-5)

    def test_a_matrix_with_infinities_is_refused(self):
        stats = gram_stats(np.eye(6))
        stats.gram[0, 1] = stats.gram[1, 0] = float("inf")
        with pytest.raises(ValueError, match="NaN or infinite"):
            self.saliency.score(some_weight(), stats)

    def test_no_damping_is_refused(self):
        with pytest.raises(ValueError, match=r"positive, 0\.01 for instance; got 0\.0"):
            OBS(damping=0.0)
