"""Laws that every member of a kind obeys; its test class inherits them."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from ditprune.activations import ActivationStats
from ditprune.granularity import Granularity, Pools, Runs
from ditprune.repair import Repair, Repaired
from ditprune.repair.base import relative_error
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


class RepairProblem(NamedTuple):
    """Some layer, its inputs, and the mask of Wanda's score."""

    weight: torch.Tensor
    tokens: torch.Tensor
    stats: ActivationStats
    pools: Pools
    mask: torch.Tensor


def repair_problem(
    kind: str = "layer", sparsity: float = 0.5, num_tokens: int = 200, shape=(12, 32)
) -> RepairProblem:
    """Strongly correlated channels of different loudness and with means."""
    generator = torch.Generator().manual_seed(5)
    num_inputs = shape[1]
    mixing = torch.randn(6, num_inputs, generator=generator)
    x = torch.randn(num_tokens, 6, generator=generator) @ mixing
    x += 0.3 * torch.randn(num_tokens, num_inputs, generator=generator) + mixing[0]
    x *= torch.linspace(0.5, 3, num_inputs)
    weight = torch.randn(shape, generator=generator) / num_inputs**0.5
    return problem_of(weight, x, kind, sparsity)


def problem_of(
    weight: torch.Tensor, x: torch.Tensor, kind: str = "layer", sparsity: float = 0.5
) -> RepairProblem:
    stats = ActivationStats(x.shape[1], with_gram=True)
    stats.add(x)
    pools = runs(kind, weight, sparsity)
    return RepairProblem(weight, x, stats, pools, pools.keep(weight.float().abs() * stats.rms()))


def runs(kind: str, weight: torch.Tensor, sparsity: float) -> Runs:
    """Equal pools, of which the first keep one more where the number does not divide."""
    num_pools = {"layer": 1, "row": len(weight), "2:4": weight.numel() // 4}[kind]
    kept = round(weight.numel() * (1 - sparsity))
    return Runs(kind, kept // num_pools + (torch.arange(num_pools) < kept % num_pools).long())


def repaired_by(repair: Repair, problem: RepairProblem, has_bias: bool = True) -> Repaired:
    weight, _, stats, pools, mask = problem
    return repair.repair(weight, mask, stats, pools, has_bias)


def masked_only(problem: RepairProblem) -> Repaired:
    weight, mask = problem.weight, problem.mask
    return Repaired(weight.masked_fill(~mask, 0), mask, weight.new_zeros(len(weight)))


class RepairContract:
    repair: Repair

    @pytest.mark.parametrize("kind", ["layer", "row", "2:4"])
    def test_every_pool_keeps_exactly_as_many_and_the_others_weigh_nothing(self, kind):
        for sparsity in (0.5,) if kind == "2:4" else (0.13, 0.5, 0.77, 0.99):
            problem = repair_problem(kind, sparsity)
            repaired = repaired_by(self.repair, problem)
            kept = repaired.mask.reshape(len(problem.pools.num_kept), -1).sum(1)
            assert torch.equal(kept, problem.pools.num_kept)
            assert not repaired.weight[~repaired.mask].any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_dtype_and_shape_stay(self, dtype):
        problem = repair_problem()
        problem = problem._replace(weight=problem.weight.to(dtype))
        repaired = repaired_by(self.repair, problem)
        assert repaired.weight.dtype is repaired.bias_shift.dtype is dtype
        assert repaired.mask.dtype is torch.bool
        assert repaired.weight.shape == repaired.mask.shape == (12, 32)
        assert repaired.bias_shift.shape == (12,)

    def test_weight_mask_and_statistics_are_left_as_they_were(self):
        problem, same = repair_problem(), repair_problem()
        repaired_by(self.repair, problem)
        assert torch.equal(problem.weight, same.weight)
        assert torch.equal(problem.mask, same.mask)
        assert torch.equal(problem.stats.pack(), same.stats.pack())
        assert torch.equal(problem.pools.num_kept, same.pools.num_kept)

    def test_twice_is_the_same(self):
        first, second = (repaired_by(self.repair, repair_problem()) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_where_nothing_goes_nothing_changes(self):
        problem = repair_problem(sparsity=0.0)
        repaired = repaired_by(self.repair, problem)
        assert repaired.mask.all()
        assert torch.allclose(repaired.weight, problem.weight, rtol=1e-5, atol=1e-7)
        assert torch.allclose(repaired.bias_shift, torch.zeros(12), atol=1e-5)

    @pytest.mark.parametrize("kind", ["layer", "row", "2:4"])
    def test_a_channel_into_which_nothing_flows_breaks_nothing(self, kind):
        problem = repair_problem()
        problem.tokens[:, 3] = 0
        problem = problem_of(problem.weight, problem.tokens, kind)
        repaired = repaired_by(self.repair, problem)
        assert repaired.weight.isfinite().all()
        assert repaired.bias_shift.isfinite().all()
        assert int(repaired.mask.sum()) == int(problem.mask.sum())

    def test_no_input_and_no_weight_breaks_nothing(self):
        weight, x = repair_problem()[:2]
        for problem in (problem_of(weight, 0 * x), problem_of(0 * weight, x)):
            repaired = repaired_by(self.repair, problem)
            assert repaired.weight.isfinite().all()
            assert int(repaired.mask.sum()) == int(problem.mask.sum())

    def test_fewer_tokens_than_inputs_break_nothing(self):
        problem = repair_problem(num_tokens=5)
        repaired = repaired_by(self.repair, problem)
        assert repaired.weight.isfinite().all()
        assert repaired.weight.abs().max() < 100 * problem.weight.abs().max()

    def test_a_corrected_bias_brings_the_mean_outputs_back(self):
        problem = repair_problem()
        weight, _, shift = repaired_by(replace(self.repair, correct_bias=True), problem)
        lost = problem.tokens.mean(0) @ (problem.weight - weight).T - shift
        assert torch.allclose(lost, torch.zeros(12), atol=1e-5)

    def test_a_layer_without_bias_gets_none(self):
        repaired = repaired_by(
            replace(self.repair, correct_bias=True), repair_problem(), has_bias=False
        )
        assert not repaired.bias_shift.any()


class GramRepairContract(RepairContract):
    """For repairs that know the Gram matrix, and so the error."""

    @pytest.mark.parametrize("kind", ["layer", "row", "2:4"])
    def test_the_error_is_below_that_of_the_mask_alone(self, kind):
        for num_tokens in (5, 200):
            problem = repair_problem(kind, num_tokens=num_tokens)
            alone = relative_error(problem.weight, masked_only(problem), problem.stats)
            repaired = repaired_by(self.repair, problem)
            assert relative_error(problem.weight, repaired, problem.stats) < 0.9 * alone

    def test_they_ask_for_the_gram_matrix(self):
        assert self.repair.needs_gram
