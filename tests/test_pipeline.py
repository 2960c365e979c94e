import copy
from dataclasses import dataclass, field

import pytest
import torch
from conftest import split

import ditprune
from ditprune.calibration import Observation, calibrate, evaluating
from ditprune.families import Batch, DiT, Table
from ditprune.granularity import ClusteringAware, Layer, Row
from ditprune.layers import target_weights
from ditprune.masks import weight_matrix
from ditprune.recipe import Recipe
from ditprune.repair import LeastSquares
from ditprune.saliency import Energy


def prune(model, batches, family=None, **changes):
    recipe = Recipe(**{"saliency": Energy(), "granularity": Layer(), "sparsity": 0.5, **changes})
    return ditprune.prune(model, batches, family=family or DiT(), recipe=recipe).masks


def test_half_of_the_targets_weights_go_and_nothing_else_changes(tiny_dit, calibration):
    dense = copy.deepcopy(tiny_dit.state_dict())
    masks = prune(tiny_dit, [calibration])
    assert masks.sparsity() == 0.5
    targets = {f"{t.name}.weight": mask for t, mask in masks.masks.items()}
    for name, value in tiny_dit.state_dict().items():
        expected = torch.where(targets[name], dense[name], 0) if name in targets else dense[name]
        assert torch.equal(value, expected)


def test_scores_follow_the_input_of_each_layer(tiny_dit, calibration):
    """The mask of the first MLP, recomputed from its input as the model itself sees it."""
    inputs = []
    layer = tiny_dit.transformer_blocks[0].ff.net[0].proj
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        DiT().predict(tiny_dit, calibration)
    handle.remove()
    rms = inputs[0].flatten(0, 1).double().square().mean(0).sqrt()
    score = layer.weight.detach().double().square() * rms
    masks = prune(tiny_dit, [calibration])
    mask = next(m for t, m in masks.masks.items() if t.name.endswith("blocks.0.ff.net.0.proj"))
    assert score[mask].min() >= score[~mask].max() * (1 - 1e-6)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_masks_do_not_depend_on_the_batch_size_to_the_bit(tiny_dit, calibration, size):
    other = copy.deepcopy(tiny_dit)
    assert prune(tiny_dit, [calibration]).hash() == prune(other, split(calibration, size)).hash()


def test_statistics_do_not_depend_on_the_batch_size_to_the_bit(tiny_dit, calibration):
    weights = target_weights(tiny_dit, DiT())
    whole, pieces = (
        calibrate(tiny_dit, split(calibration, size), DiT(), weights, Observation(3))
        for size in (12, 5)
    )
    for target in weights:
        assert torch.equal(whole[target].pack(), pieces[target].pack())


def test_each_sample_counts_in_the_bin_of_its_noise_level(tiny_dit, calibration):
    weights = target_weights(tiny_dit, DiT())
    stats = calibrate(tiny_dit, [calibration], DiT(), weights, Observation(4))
    # Twelve samples over four bins, of sixteen tokens in two guidance branches; adaLN sees two.
    assert stats[next(iter(weights))].weight.tolist() == [6] * 4
    assert stats[list(weights)[1]].weight.tolist() == [96] * 4


def test_labels_are_not_dropped_while_calibrating_and_the_mode_comes_back(tiny_dit, calibration):
    weights = target_weights(tiny_dit, DiT())
    expected = calibrate(tiny_dit, [calibration], DiT(), weights)
    tiny_dit.train()
    tiny_dit.pos_embed.eval()
    stats = calibrate(tiny_dit, [calibration], DiT(), weights)
    assert all(torch.equal(stats[t].pack(), expected[t].pack()) for t in weights)
    assert tiny_dit.training
    assert not tiny_dit.pos_embed.training


def test_no_gradient_is_kept(tiny_dit, calibration):
    prune(tiny_dit, [calibration])
    assert all(p.grad is None and p.requires_grad for p in tiny_dit.parameters())


def test_a_half_precision_model_is_pruned_to_the_same_sparsity(tiny_dit, calibration):
    tiny_dit.to(torch.bfloat16)
    assert prune(tiny_dit, [calibration], granularity=Row()).sparsity() == 0.5
    assert tiny_dit.dtype is torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_found_before_calibration(tiny_dit, value):
    target = DiT().targets(tiny_dit)[3]
    weight_matrix(tiny_dit, target)[0, 0] = value

    def never():
        raise AssertionError("calibration has started")
        yield

    with pytest.raises(ValueError, match=rf"NaN or infinite weights in {target.name}"):
        prune(tiny_dit, never())


def test_activations_that_are_not_finite_leave_the_model_untouched(tiny_dit, calibration):
    before = copy.deepcopy(tiny_dit.state_dict())
    bad = calibration._replace(latents=torch.full((12, 1, 8, 8), float("nan")))
    with pytest.raises(ValueError, match="NaN or infinite activations flow into"):
        prune(tiny_dit, [bad])
    assert all(torch.equal(value, before[name]) for name, value in tiny_dit.state_dict().items())


@dataclass(frozen=True)
class Failing(LeastSquares):
    """Fails at the third layer, and remembers the model as it is then."""

    model: torch.nn.Module = None
    seen: list = field(default_factory=list)

    def solve(self, problem, pools):
        self.seen.append(copy.deepcopy(self.model.state_dict()))
        if len(self.seen) == 3:
            raise KeyboardInterrupt
        return super().solve(problem, pools)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_repair_that_fails_midway_leaves_the_model_as_it_was(tiny_dit, calibration, sequential):
    tiny_dit.train()
    before = copy.deepcopy(tiny_dit.state_dict())
    repair = Failing(correct_bias=True, model=tiny_dit)
    with pytest.raises(KeyboardInterrupt) as caught:
        prune(tiny_dit, [calibration], repair=repair, sequential=sequential)
    changed = [
        name for name, value in repair.seen[2].items() if not torch.equal(value, before[name])
    ]
    assert sorted(name.rpartition(".")[2] for name in changed) == ["bias"] * 2 + ["weight"] * 2
    assert all(torch.equal(value, before[name]) for name, value in tiny_dit.state_dict().items())
    assert all(module.training for module in tiny_dit.modules())
    assert caught.tb  # which would keep a calibration that nobody closed where it was


def test_an_empty_calibration_set_is_an_error(tiny_dit):
    with pytest.raises(ValueError, match="calibration set is empty"):
        prune(tiny_dit, [])


def test_a_layer_that_is_never_reached_stops_the_run_after_one_sample(tiny_dit, calibration):
    calls = []

    def skip_the_model(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        calls.append(batch)
        return batch.latents

    table = Table(table=DiT().layers(tiny_dit), call=skip_the_model)
    with pytest.raises(ValueError, match="14 target layers were never reached"):
        prune(tiny_dit, [calibration], family=table)
    assert len(calls) == 1


def test_evaluating_restores_the_mode_after_an_exception():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval()).train()
    model[1].eval()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model[0].training
        raise ZeroDivisionError
    assert [m.training for m in model] == [True, False]


def test_the_granularity_decides_the_masks(tiny_dit, calibration):
    hashes = {
        prune(copy.deepcopy(tiny_dit), [calibration], granularity=granularity).hash()
        for granularity in (Layer(), Row(), ClusteringAware(threshold="by-kind"))
    }
    assert len(hashes) == 3
