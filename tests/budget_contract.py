"""Laws that every budget obeys; its test class inherits them."""

from dataclasses import replace

import pytest
import torch

from ditprune.activations import ActivationStats
from ditprune.budget import Budget
from ditprune.saliency import Energy, Saliency, Scores
from ditprune.targets import PruneTarget, Role


def layer(name: str, role: Role = Role.MLP_UP, block: int = 0) -> PruneTarget:
    return PruneTarget(f"blocks.{block}.{name}", role, block, 1, f"blocks.{block}")


def stats_of(x: torch.Tensor) -> ActivationStats:
    stats = ActivationStats(x.shape[1])
    stats.add(x)
    return stats


def scores_of(
    weights: dict[PruneTarget, torch.Tensor],
    saliency: Saliency = Energy(),
    inputs: dict[PruneTarget, torch.Tensor] | None = None,
) -> Scores:
    """Scores of weights; what flows in is 1 everywhere, unless given."""
    inputs = inputs or {t: torch.ones(1, weight.shape[1]) for t, weight in weights.items()}
    return Scores(saliency, weights, {t: stats_of(inputs[t]) for t in weights})


def some_scores(saliency: Saliency = Energy()) -> Scores:
    """Five layers of awkward sizes, of unlike spread and loudness, in two blocks."""
    generator = torch.Generator().manual_seed(5)
    targets = {
        layer("mod", Role.MODULATION): (30, 7),
        layer("q", Role.ATTN_Q): (11, 9),
        layer("up"): (13, 9),
        layer("q", Role.ATTN_Q, block=1): (11, 9),
        layer("up", block=1): (17, 9),
    }
    weights = {
        target: torch.randn(shape, generator=generator).pow(1 + 2 * (index % 2))
        for index, (target, shape) in enumerate(targets.items())
    }
    inputs = {
        target: torch.randn(5, weight.shape[1], generator=generator) * 10.0 ** (index - 2)
        for index, (target, weight) in enumerate(weights.items())
    }
    return scores_of(weights, saliency, inputs)


def sizes(scores: Scores) -> dict[PruneTarget, int]:
    return {target: weight.numel() for target, weight in scores.weights.items()}


class BudgetContract:
    budget: Budget

    @pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.37, 0.5, 0.77, 0.9])
    def test_together_the_layers_give_exactly_what_was_asked_for(self, sparsity):
        given = self.budget.allocate(some_scores(), sparsity)
        assert list(given) == list(some_scores())
        assert sum(given.values()) == round(sparsity * sum(sizes(some_scores()).values()))

    def test_no_layer_gives_more_than_the_most(self):
        budget = replace(self.budget, max_sparsity=0.6)
        for target, number in budget.allocate(some_scores(), 0.59).items():
            assert 0 <= number <= 0.6 * sizes(some_scores())[target]

    def test_protected_layers_give_nothing_and_the_others_more(self):
        budget = replace(self.budget, protected_roles=(Role.MODULATION,))
        given = budget.allocate(some_scores(), 0.4)
        assert given.pop(layer("mod", Role.MODULATION)) == 0
        total = sum(sizes(some_scores()).values())
        assert sum(given.values()) == round(0.4 * total) > 0.4 * (total - 210)

    def test_equal_layers_give_equally(self):
        weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(6))
        scores = scores_of({layer("up", block=index): weight for index in range(3)})
        assert list(self.budget.allocate(scores, 0.4).values()) == [8, 8, 8]

    def test_a_layer_into_which_nothing_flows_breaks_nothing(self):
        weights, dead = some_scores().weights, layer("up")
        inputs = {t: torch.full((1, w.shape[1]), float(t != dead)) for t, w in weights.items()}
        given = self.budget.allocate(scores_of(dict(weights), inputs=inputs), 0.5)
        assert sum(given.values()) == round(0.5 * sum(sizes(some_scores()).values()))

    def test_weights_are_left_as_they_were(self):
        scores = some_scores()
        self.budget.allocate(scores, 0.5)
        assert all(torch.equal(w, some_scores().weights[t]) for t, w in scores.weights.items())
