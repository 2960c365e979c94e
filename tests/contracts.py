"""Laws that every member of a kind obeys; its test class inherits them."""

import pytest
import torch

from ditprune.activations import ActivationStats
from ditprune.granularity import Granularity
from ditprune.saliency import Saliency
from ditprune.targets import PruneTarget, Role


def some_stats(num_inputs: int = 6) -> ActivationStats:
    stats = ActivationStats(num_inputs, num_timestep_bins=2)
    generator = torch.Generator().manual_seed(2)
    for timestep_bin in (0, 1, 1):
        stats.add(torch.randn(1, 7, num_inputs, generator=generator), timestep_bin)
    return stats


def some_weight(num_outputs: int = 4, num_inputs: int = 6) -> torch.Tensor:
    return torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(3))


def target(name: str = "block.0", role: Role = Role.MLP_UP) -> PruneTarget:
    return PruneTarget(name, role, block=0, num_heads=1)


class SaliencyContract:
    saliency: Saliency

    def test_scores_have_the_weights_shape_in_float32_and_are_finite(self):
        for dtype in (torch.float32, torch.bfloat16):
            score = self.saliency.score(some_weight().to(dtype), some_stats())
            assert score.shape == (4, 6)
            assert score.dtype is torch.float32
            assert score.isfinite().all()

    def test_weight_and_statistics_are_left_as_they_were(self):
        weight, stats = some_weight(), some_stats()
        self.saliency.score(weight, stats)
        assert torch.equal(weight, some_weight())
        assert torch.equal(stats.pack(), some_stats().pack())

    def test_a_channel_into_which_nothing_flows_breaks_nothing(self):
        stats = some_stats()
        stats.sum_of_squares[:, 2] = 0
        assert self.saliency.score(some_weight(), stats).isfinite().all()

    def test_the_order_of_the_rows_does_not_matter(self):
        order = torch.tensor([2, 0, 3, 1])
        score = self.saliency.score(some_weight(), some_stats())
        assert torch.equal(self.saliency.score(some_weight()[order], some_stats()), score[order])

    def test_the_sign_of_a_weight_does_not_matter(self):
        score = self.saliency.score(some_weight(), some_stats())
        assert torch.equal(self.saliency.score(-some_weight(), some_stats()), score)


class GranularityContract:
    granularity: Granularity

    def scores(self) -> dict[PruneTarget, torch.Tensor]:
        generator = torch.Generator().manual_seed(4)
        return {
            target("a", Role.MODULATION): torch.rand(7, 9, generator=generator),
            target("b"): torch.rand(5, 3, generator=generator),
        }

    def keep(self, scores=None, sparsity: float = 0.5):
        scores = self.scores() if scores is None else scores
        return self.granularity.keep(scores, counts(scores, sparsity))

    @pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.999])
    def test_the_number_of_weights_that_go_is_exact(self, sparsity):
        wanted = counts(self.scores(), sparsity)
        for name, mask in self.keep(sparsity=sparsity).items():
            assert int((~mask).sum()) == wanted[name]

    def test_the_number_is_exact_where_all_scores_are_equal(self):
        mask = self.keep({target(): torch.ones(6, 8)})[target()]
        assert int(mask.sum()) == 24

    def test_each_layer_gives_its_own_number(self):
        scores = self.scores()
        wanted = dict(zip(scores, (40, 3), strict=True))
        for name, mask in self.granularity.keep(scores, wanted).items():
            assert int((~mask).sum()) == wanted[name]

    def test_masks_are_boolean_and_of_the_scores_shape(self):
        masks = self.keep()
        assert {t: m.shape for t, m in masks.items()} == {
            t: s.shape for t, s in self.scores().items()
        }
        assert all(mask.dtype is torch.bool for mask in masks.values())

    def test_twice_is_the_same(self):
        first, second = self.keep(), self.keep()
        assert all(torch.equal(first[t], second[t]) for t in first)

    def test_the_best_weight_of_a_layer_stays(self):
        for name, mask in self.keep().items():
            assert mask.flatten()[self.scores()[name].argmax()]

    def test_pools_take_other_scores_and_keep_as_many(self):
        """A repair that moves the mask comes back with scores of its own."""
        scores = self.scores()
        for name, pools in self.granularity.pools(scores, counts(scores, 0.6)).items():
            moved = pools.keep(scores[name].flip(0, 1))
            assert int((~moved).sum()) == counts(scores, 0.6)[name]


def counts(scores: dict[PruneTarget, torch.Tensor], sparsity: float) -> dict[PruneTarget, int]:
    return {name: round(sparsity * score.numel()) for name, score in scores.items()}
