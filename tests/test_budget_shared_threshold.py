import numpy as np
import pytest
import torch
from budget_contract import BudgetContract, layer, scores_of, sizes, some_scores

from ditprune.activations import ActivationStats
from ditprune.budget import SharedThreshold, Uniform, WaterFilling, WholeModel
from ditprune.cholesky import factorise
from ditprune.granularity.layer import layer_pools
from ditprune.importance import in_image_units
from ditprune.repair import ADMM, LeastSquares
from ditprune.repair.admm import stable_mask
from ditprune.repair.base import quadratic
from ditprune.saliency import OBD, Energy, Magnitude, Scores
from ditprune.targets import Role


def stats_of(x: torch.Tensor) -> ActivationStats:
    stats = ActivationStats(x.shape[1], with_gram=True)
    stats.add(x)
    return stats


@pytest.fixture(autouse=True)
def _gram_matrices(monkeypatch):
    """The contract's layers, with the matrices that this budget asks for."""
    monkeypatch.setattr("budget_contract.stats_of", stats_of)


def white(num_inputs: int = 32) -> torch.Tensor:
    """Inputs that cannot stand in for each other."""
    return torch.randn(400, num_inputs, generator=torch.Generator().manual_seed(11))


def correlated(num_inputs: int = 32) -> torch.Tensor:
    """Inputs that can: four directions and some noise."""
    generator = torch.Generator().manual_seed(1)
    few = torch.randn(400, 4, generator=generator) @ torch.randn(4, num_inputs, generator=generator)
    return few + 0.3 * torch.randn(400, num_inputs, generator=generator)


def some_weight(seed: int = 12) -> torch.Tensor:
    return torch.randn(16, 32, generator=torch.Generator().manual_seed(seed))


def pair(*scales: float, inputs=correlated) -> Scores:
    """Layers of the same weights and inputs, times what their outputs matter."""
    weights = {layer(f"up{i}"): scale * some_weight() for i, scale in enumerate(scales)}
    return scores_of(weights, inputs={target: inputs() for target in weights})


def unlike(loudness: float) -> Scores:
    """A layer whose inputs can make up for each other, and one whose inputs cannot."""
    weights = {layer("up"): some_weight(), layer("down", Role.MLP_DOWN): some_weight(13)}
    inputs = dict(zip(weights, (correlated(), loudness * white()), strict=True))
    return scores_of(weights, inputs=inputs)


def error_after(repair, scores: Scores, numbers) -> float:
    """Sum over layers of tr D H D^T, repaired at these numbers."""
    total = 0.0
    for target, number in numbers.items():
        weight, stats = scores.weights[target], scores.stats[target]
        pools = layer_pools(weight, number)
        mask = pools.keep(weight.abs() * stats.rms())
        repaired = repair.repair(weight, mask, stats, pools, False)
        total += quadratic(weight - repaired.weight, stats.second_moment())
    return total


def published(scores: Scores, total: int, num_iterations: int) -> list[int]:
    """ALPS (arXiv 2406.07831, Alg. 1) on all layers as one block-diagonal problem, in float64."""
    goals, blocks = [], []
    for target in scores:
        hessian = scores.stats[target].second_moment().numpy()
        hessian = hessian + 0.001 * np.diag(hessian).mean() * np.eye(len(hessian))
        scale = np.sqrt(np.diag(hessian))
        goals.append(scores.weights[target].double().numpy() * scale)
        blocks.append(hessian / np.outer(scale, scale))

    def largest(parts):
        level = np.sort(np.concatenate([np.abs(part).flatten() for part in parts]))[total]
        return [np.abs(part) >= level for part in parts]

    penalty, masks = 0.03, largest(goals)
    sparse, before = [g * m for g, m in zip(goals, masks, strict=True)], masks
    dual = [np.zeros_like(g) for g in goals]
    for iteration in range(1, num_iterations + 1):
        full = [
            (g @ h - v + penalty * d) @ np.linalg.inv(h + penalty * np.eye(len(h)))
            for g, h, v, d in zip(goals, blocks, dual, sparse, strict=True)
        ]
        pulled = [b + v / penalty for b, v in zip(full, dual, strict=True)]
        masks = largest(pulled)
        sparse = [p * m for p, m in zip(pulled, masks, strict=True)]
        dual = [v + penalty * (b - d) for v, b, d in zip(dual, full, sparse, strict=True)]
        if iteration % 3 == 0:
            share = sum((m & ~o).sum() for m, o in zip(masks, before, strict=True)) / total
            penalty *= 1.3 if share >= 0.1 else 1.2 if share >= 0.005 else 1.1
            before = masks
    return [int((~mask).sum()) for mask in masks]


class TestSharedThreshold(BudgetContract):
    budget = SharedThreshold()

    def test_it_asks_for_the_gram_matrix(self):
        assert self.budget.needs_gram
        assert not Uniform().needs_gram

    @pytest.mark.parametrize("num_iterations", [1, 2, 9, 18])
    def test_its_numbers_are_those_of_the_published_algorithm_on_all_layers_at_once(
        self, num_iterations
    ):
        budget = SharedThreshold(max_deviation=1.0, max_sparsity=1.0, max_iterations=num_iterations)
        for loudness in (0.2, 3.0):
            scores = unlike(loudness)
            given = list(budget.allocate(scores, 0.5).values())
            assert np.allclose(given, published(scores, 512, num_iterations), atol=3)
            assert abs(given[0] - 256) > 20

    def test_where_no_layer_may_differ_their_masks_are_those_of_alps_in_each(self, monkeypatch):
        """The iterations of layers that give fixed numbers do not touch each other."""
        weight, stats = some_weight(), stats_of(correlated())
        damped = factorise(stats.second_moment(), 0.001)[0]
        pools = layer_pools(weight, 256)
        start = pools.keep((weight * damped.diagonal().sqrt()).float().abs())
        expected = stable_mask(weight, start, damped, pools, 0.03, 9)
        seen = {}
        iterate = SharedThreshold.iterate

        def listening(budget, layers, bounds, total):
            given = iterate(budget, layers, bounds, total)
            seen.update(layers)
            return given

        monkeypatch.setattr(SharedThreshold, "iterate", listening)
        budget = SharedThreshold(max_deviation=0.0, max_iterations=9)
        budget.allocate(pair(1.0, 3.0), 0.5)
        for joint in seen.values():
            assert (joint.mask != expected).float().mean() < 0.01
        assert (expected != start).float().mean() > 0.05

    @pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
    def test_a_layer_whose_outputs_matter_far_more_gives_the_least_it_may(self, sparsity):
        many, few = self.budget.allocate(pair(1.0, 100.0), sparsity).values()
        assert few == pytest.approx(512 * max(sparsity - 0.15, 0), abs=1)
        assert many + few == round(1024 * sparsity)

    def test_the_more_the_outputs_of_a_layer_matter_the_less_it_gives(self):
        budget = SharedThreshold(max_deviation=0.5)
        given = [list(budget.allocate(pair(1.0, s), 0.5).values())[1] for s in (1, 2, 4, 100)]
        assert given[0] == 256
        assert given == sorted(set(given), reverse=True)

    def test_what_matters_is_said_by_the_importance_of_the_outputs(self):
        """Weights in image units are weights times the root of what their outputs are worth."""
        plain, scaled = pair(1.0, 1.0), pair(1.0, 2.0)
        eye = torch.eye(16, dtype=torch.float64)
        importance = dict(zip(plain, (eye, 4 * eye), strict=True))
        units = in_image_units(plain.weights, importance)
        found = self.budget.allocate(Scores(Energy(), units, plain.stats), 0.5)
        assert found == self.budget.allocate(scaled, 0.5)
        assert found != self.budget.allocate(plain, 0.5)

    def test_loud_inputs_and_quiet_weights_are_a_layer_like_any_other(self):
        scores = unlike(1.0)
        first = next(iter(scores))
        weights = {t: w / 1024 if t == first else w for t, w in scores.weights.items()}
        inputs = dict(zip(weights, (1024 * correlated(), white()), strict=True))
        assert self.budget.allocate(scores_of(weights, inputs=inputs), 0.5) == (
            self.budget.allocate(scores, 0.5)
        )

    @pytest.mark.parametrize(("loudness", "share"), [(0.2, 0.95), (2.0, 0.5), (3.0, 0.5)])
    @pytest.mark.parametrize("repair", [ADMM(), LeastSquares()], ids=["ADMM", "LeastSquares"])
    def test_after_repair_less_is_lost_than_by_equal_shares_or_a_threshold_before(
        self, loudness, share, repair
    ):
        """No law: of these layers, equal shares lose less at a loudness of 0.3 to 1."""
        scores = unlike(loudness)
        limits = WholeModel(max_sparsity=0.65)  # as near to the others as this one may be
        shared, equal, before = (
            error_after(repair, scores, budget.allocate(scores, 0.5))
            for budget in (self.budget, Uniform(), limits)
        )
        assert shared < share * equal
        assert shared <= before

    @pytest.mark.parametrize("deviation", [0.0, 0.05, 0.15])
    def test_no_layer_differs_by_more_than_it_may(self, deviation):
        budget = SharedThreshold(max_deviation=deviation)
        for sparsity in (0.1, 0.37, 0.77):
            scores = some_scores()
            for target, number in budget.allocate(scores, sparsity).items():
                assert abs(number - sparsity * sizes(scores)[target]) <= (
                    deviation * sizes(scores)[target] + 1
                )

    def test_the_limits_are_reached_and_no_more_where_layers_are_unlike(self):
        scores = some_scores()
        given = self.budget.allocate(scores, 0.5)
        shares = [number / sizes(scores)[target] for target, number in given.items()]
        assert min(shares) == pytest.approx(0.35, abs=0.01)
        assert max(shares) == pytest.approx(0.65, abs=0.01)

    def test_twice_is_the_same(self):
        first, second = (self.budget.allocate(unlike(0.5), 0.5) for _ in range(2))
        assert first == second

    def test_the_recipes_saliency_does_not_matter(self):
        one, other = (self.budget.allocate(some_scores(s), 0.5) for s in (OBD(), Magnitude()))
        assert one == other

    def test_statistics_are_left_as_they_were(self):
        scores = unlike(1.0)
        self.budget.allocate(scores, 0.5)
        for target, stats in unlike(1.0).stats.items():
            assert torch.equal(scores.stats[target].pack(), stats.pack())

    def test_fewer_tokens_than_inputs_break_nothing(self):
        weights = {layer("up"): some_weight(), layer("down", Role.MLP_DOWN): some_weight(13)}
        inputs = dict(zip(weights, (correlated()[:5], white()[:5]), strict=True))
        given = self.budget.allocate(scores_of(weights, inputs=inputs), 0.5)
        assert sum(given.values()) == 512

    def test_a_layer_whose_inputs_stand_in_for_each_other_gives_more_than_before_repair(self):
        """A threshold on the weights as they are is blind to what the others can take over."""
        scores = unlike(2.0)
        correlated_gives = [
            budget.allocate(scores, 0.5)[layer("up")]
            for budget in (self.budget, WholeModel(max_sparsity=0.65), WaterFilling())
        ]
        assert correlated_gives[0] > 1.15 * max(correlated_gives[1:])
