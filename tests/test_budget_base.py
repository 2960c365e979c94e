import re
from dataclasses import dataclass, replace

import pytest
import torch
from budget_contract import BudgetContract, layer, scores_of, sizes, some_scores
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ditprune.budget import Budget, Uniform
from ditprune.budget.base import apportion
from ditprune.saliency import Lookahead
from ditprune.targets import Role


@dataclass(frozen=True)
class Given(Budget):
    """Wants what it is told, in the order of the layers."""

    fractions: tuple[float, ...] = ()

    def wanted(self, scores, sparsity):
        return dict(zip(scores, self.fractions, strict=True))


def weights_of(numbers) -> dict:
    return {layer(f"up{index}"): torch.ones(1, n) for index, n in enumerate(numbers)}


class TestUniform(BudgetContract):
    budget = Uniform()

    def test_every_layer_gives_the_same_fraction_to_less_than_a_weight(self):
        for target, number in self.budget.allocate(some_scores(), 0.37).items():
            assert abs(number - 0.37 * sizes(some_scores())[target]) < 1

    def test_what_is_expected_before_calibration_is_what_comes(self):
        scores = some_scores()
        assert self.budget.expected(sizes(scores), 0.37) == self.budget.allocate(scores, 0.37)


@settings(deadline=None)
@given(
    layers=st.lists(st.tuples(st.integers(1, 5000), st.floats(-0.5, 1.5)), min_size=1, max_size=9),
    sparsity=st.floats(0, 0.999),
    most=st.floats(0.01, 1.0),
)
@example(layers=[(4, 1.5)], sparsity=0.25, most=1.0)  # a shift by more than 1
def test_any_wishes_become_an_exact_total_or_are_refused(layers, sparsity, most):
    scores = scores_of(weights_of(size for size, _ in layers))
    budget = Given(max_sparsity=most, fractions=tuple(wish for _, wish in layers))
    total = round(sparsity * sum(size for size, _ in layers))
    if total > sum(int(size * most + 1e-6) for size, _ in layers):
        with pytest.raises(ValueError, match="out of reach"):
            budget.allocate(scores, sparsity)
        return
    numbers = budget.allocate(scores, sparsity)
    assert sum(numbers.values()) == total
    assert all(0 <= numbers[t] <= n * most + 1e-6 for t, n in sizes(scores).items())


def test_all_wishes_are_shifted_alike_and_not_scaled():
    scores = scores_of(weights_of([100, 100]))
    numbers = Given(fractions=(0.2, 0.6)).allocate(scores, 0.5)
    assert list(numbers.values()) == [30, 70]


def test_what_one_layer_cannot_give_the_others_do():
    scores = scores_of(weights_of([100, 100, 100]))
    numbers = Given(fractions=(0.9, 0.3, 0.1), max_sparsity=0.8).allocate(scores, 0.5)
    assert list(numbers.values()) == [80, 45, 25]


def test_what_rounding_leaves_over_goes_to_the_largest_remainders():
    # 1.25, 1.75, 3.5 and 3.5 weights are wanted; two are left over: of equals, for the first.
    numbers = Uniform().allocate(scores_of(weights_of([5, 7, 14, 14])), 0.25)
    assert list(numbers.values()) == [1, 2, 4, 3]


def test_wishes_to_the_weight_are_granted_in_large_layers():
    sizes = {layer("a"): 123_456_789, layer("b"): 98_765_433, layer("c"): 7}
    wanted = {layer("a"): 61_111_111, layer("b"): 3, layer("c"): 6}
    fractions = {target: wanted[target] / sizes[target] for target in sizes}
    assert apportion(fractions, sizes, sum(wanted.values()), 1.0) == wanted


def test_a_sparsity_out_of_reach_is_refused_with_what_would_do():
    budget = Uniform(protected_roles=(Role.MODULATION, Role.ATTN_Q), max_sparsity=0.8)
    with pytest.raises(ValueError, match=re.escape("2 of 5 layers may be pruned, to 0.8")) as error:
        budget.allocate(some_scores(), 0.5)
    for remedy in ("less", "protect fewer", "max_sparsity"):
        assert remedy in str(error.value)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 50.0])
def test_what_is_no_sparsity_is_refused(sparsity):
    with pytest.raises(ValueError, match="fraction"):
        Uniform().allocate(some_scores(), sparsity)


def test_if_all_roles_are_protected_nothing_can_go_and_nothing_is_allowed():
    budget = Uniform(protected_roles=tuple(Role))
    assert set(budget.allocate(some_scores(), 0.0).values()) == {0}
    assert set(budget.expected(sizes(some_scores()), 0.0).values()) == {0}
    with pytest.raises(ValueError, match="0 of 5 layers"):
        budget.allocate(some_scores(), 0.1)


def test_protected_layers_are_not_scored_but_are_still_neighbours():
    up, down = layer("up"), layer("down", Role.MLP_DOWN)
    seen = {}

    @dataclass(frozen=True)
    class Watching(Uniform):
        def wanted(self, scores, sparsity):
            seen.update(scores)
            return super().wanted(scores, sparsity)

    scores = scores_of({up: torch.full((3, 2), 2.0), down: torch.ones(2, 3)}, Lookahead())
    replace(Watching(), protected_roles=(Role.MLP_UP,)).allocate(scores, 0.2)
    assert list(seen) == [down]
    assert torch.equal(seen[down], scores[down])
    assert seen[down][0, 0].item() == 8.0
