import pytest
import torch
from contracts import target

from ditprune.activations import ActivationStats
from ditprune.budget import Uniform
from ditprune.decision import Evidence, decide, scores_of
from ditprune.families import DiT
from ditprune.granularity import ClusteringAware, Layer, Row
from ditprune.layers import target_weights
from ditprune.pipeline import carry_out_
from ditprune.plan import count_parameters, describe, plan, row_variations
from ditprune.recipe import Recipe
from ditprune.saliency import Magnitude, Scores
from ditprune.targets import Role


def unseen(weights):
    return {t: ActivationStats(w.shape[1]) for t, w in weights.items()}


def test_the_plan_tells_what_pruning_then_does(tiny_dit):
    weights = target_weights(tiny_dit, DiT())
    granularity = ClusteringAware(threshold="by-kind")
    planned = plan(tiny_dit, weights, granularity, 0.3, Uniform())
    evidence = Evidence(unseen(weights))
    recipe = Recipe(Magnitude(), granularity, 0.3)
    variations = row_variations(scores_of(evidence, weights, recipe))
    pools = decide(evidence, weights, recipe)
    outcome = carry_out_(tiny_dit, [], DiT(), weights, evidence, pools, recipe)
    decided = describe(tiny_dit, pools, variations, outcome)
    assert [(p.target, p.shape, p.granularity, p.num_pruned) for p in planned.layers] == [
        (d.target, d.shape, d.granularity, d.num_pruned) for d in decided.layers
    ]
    assert decided.target_sparsity == pytest.approx(outcome.masks.sparsity())
    assert [layer.row_variation for layer in decided.layers] == list(variations.values())
    assert planned.num_model_weights == sum(p.numel() for p in tiny_dit.parameters())


def test_planning_reads_no_score(tiny_dit):
    weights = target_weights(tiny_dit, DiT())
    planned = plan(tiny_dit, weights, ClusteringAware(), 0.5, Uniform())
    assert {layer.granularity for layer in planned.layers} == {"row or layer"}
    assert {layer.row_variation for layer in planned.layers} == {None}


def test_planning_knows_what_the_granularity_rounds_away(tiny_dit):
    weights = target_weights(tiny_dit, DiT())
    planned = plan(tiny_dit, weights, Row("floor"), 0.3, Uniform())
    assert all(p.num_pruned == p.shape[0] * int(0.3 * p.shape[1]) for p in planned.layers)


def test_deciding_leaves_the_model_as_it_is(tiny_dit):
    before = {name: value.clone() for name, value in tiny_dit.state_dict().items()}
    weights = target_weights(tiny_dit, DiT())
    decide(Evidence(unseen(weights)), weights, Recipe(Magnitude(), Layer(), 0.5))
    assert all(torch.equal(v, before[name]) for name, v in tiny_dit.state_dict().items())


def test_the_coefficient_of_every_layer_is_that_of_its_rows():
    weights = {
        target("a"): torch.tensor([[1.0], [3.0]]),
        target("b", Role.MODULATION): torch.ones(2, 2),
    }
    variations = row_variations(Scores(Magnitude(), weights, unseen(weights)))
    assert list(variations.values()) == [0.25, 0]


def test_shared_parameters_are_counted_once():
    model = torch.nn.ModuleList([torch.nn.Linear(3, 3, bias=False)] * 2)
    assert count_parameters(model) == 9
