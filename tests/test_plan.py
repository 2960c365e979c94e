import pytest
import torch
from contracts import target

from ditprune.families import DiT
from ditprune.granularity import ClusteringAware, Layer
from ditprune.pipeline import target_weights
from ditprune.plan import count_parameters, decide, plan
from ditprune.targets import Role


def test_the_plan_tells_what_pruning_then_does(tiny_dit):
    weights = target_weights(tiny_dit, DiT())
    granularity = ClusteringAware(0.3, threshold="by-kind")
    planned = plan(tiny_dit, weights, granularity)
    scores = {t: weight.abs() for t, weight in weights.items()}
    masks, decided = decide(tiny_dit, scores, granularity)
    assert [(p.target, p.shape, p.granularity, p.num_pruned) for p in planned.layers] == [
        (d.target, d.shape, d.granularity, d.num_pruned) for d in decided.layers
    ]
    assert decided.target_sparsity == pytest.approx(masks.sparsity())
    assert planned.num_model_weights == sum(p.numel() for p in tiny_dit.parameters())


def test_planning_reads_no_score(tiny_dit):
    planned = plan(tiny_dit, target_weights(tiny_dit, DiT()), ClusteringAware(0.5))
    assert {layer.granularity for layer in planned.layers} == {"row or layer"}
    assert {layer.row_variation for layer in planned.layers} == {None}


def test_deciding_leaves_the_model_as_it_is(tiny_dit):
    before = {name: value.clone() for name, value in tiny_dit.state_dict().items()}
    decide(tiny_dit, {t: w.abs() for t, w in target_weights(tiny_dit, DiT()).items()}, Layer(0.5))
    assert all(torch.equal(v, before[name]) for name, v in tiny_dit.state_dict().items())


def test_the_coefficient_of_every_layer_is_told_whatever_the_granularity():
    scores = {
        target("a"): torch.tensor([[1.0], [3.0]]),
        target("b", Role.MODULATION): torch.ones(2, 2),
    }
    _, decided = decide(torch.nn.Linear(1, 2), scores, Layer(0.5))
    assert [layer.row_variation for layer in decided.layers] == [0.25, 0]


def test_shared_parameters_are_counted_once():
    model = torch.nn.ModuleList([torch.nn.Linear(3, 3, bias=False)] * 2)
    assert count_parameters(model) == 9
