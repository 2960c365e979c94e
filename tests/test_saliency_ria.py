import numpy as np
import torch
from contracts import SaliencyContract, some_stats, some_weight

from ditprune.activations import ActivationStats
from ditprune.saliency import RIA


class TestRIA(SaliencyContract):
    saliency = RIA()

    def test_it_agrees_with_the_published_formula(self):
        x = np.random.default_rng(0).normal(size=(40, 6)) * np.arange(1, 7)
        weight = np.abs(np.random.default_rng(1).normal(size=(4, 6)))
        shares = weight / weight.sum(0) + weight / weight.sum(1, keepdims=True)
        expected = shares * np.linalg.norm(x, axis=0) ** 0.5
        stats = ActivationStats(6)
        stats.add(torch.from_numpy(x).float())
        score = self.saliency.score(torch.from_numpy(weight).float(), stats).double().numpy()
        assert np.allclose(score / score.sum(), expected / expected.sum(), rtol=1e-5)

    def test_a_lone_weight_in_its_column_is_worth_more_unlike_in_wanda(self):
        stats = ActivationStats(2)
        stats.add(torch.ones(3, 2))
        weight = torch.tensor([[1.0, 0.5], [1.0, 0.0], [1.0, 0.0]])
        score = self.saliency.score(weight, stats)
        assert score[0, 1] > score[0, 0]

    def test_a_dead_row_and_a_dead_column_score_zero(self):
        weight = some_weight()
        weight[1] = 0
        weight[:, 2] = 0
        score = self.saliency.score(weight, some_stats())
        assert score.isfinite().all()
        assert not score[1].any()
        assert not score[:, 2].any()

    def test_without_activations_the_shares_alone_decide(self):
        loud = some_stats()
        loud.sum_of_squares[:, 0] *= 1e6
        alone = RIA(activation_exponent=0.0)
        assert torch.equal(
            alone.score(some_weight(), loud), alone.score(some_weight(), some_stats())
        )
