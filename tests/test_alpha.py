import copy

import pytest
import torch
from conftest import split

import ditprune
from ditprune.alpha import AlphaCurve, alpha_curve, settle
from ditprune.families import DiT
from ditprune.granularity import Layer
from ditprune.layers import target_weights
from ditprune.masks import MaskSet
from ditprune.recipe import Recipe
from ditprune.saliency import Energy, SearchedEnergy

SEARCH = Recipe(SearchedEnergy((0.0, 0.5, 2.0)), Layer(), 0.6)


def curve_of(model, calibration) -> AlphaCurve:
    weights = target_weights(model, DiT())
    return alpha_curve(model, [calibration], DiT(), weights, SEARCH, SEARCH.saliency.alphas)


def test_the_error_is_that_of_a_model_pruned_by_the_other_samples(tiny_dit, calibration):
    """Samples 0, 4 and 8 of twelve are held out."""
    curve = curve_of(tiny_dit, calibration)
    assert curve.errors.shape == (3, 3)
    others = [calibration.sample(i) for i in range(12) if i % 4]
    pruned = copy.deepcopy(tiny_dit)
    recipe = Recipe(Energy(1.0, 0.5), Layer(), 0.6)
    ditprune.prune(pruned, others, family=DiT(), recipe=recipe)
    sample = calibration.sample(4)
    with torch.no_grad():
        dense, spoiled = (DiT().predict(model, sample).double() for model in (tiny_dit, pruned))
    expected = ((spoiled - dense) ** 2).sum() / (dense**2).sum()
    assert curve.errors[1, 1].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_model_is_dense_afterwards(tiny_dit, calibration):
    before = copy.deepcopy(tiny_dit.state_dict())
    curve_of(tiny_dit, calibration)
    assert all(torch.equal(v, before[name]) for name, v in tiny_dit.state_dict().items())


def test_the_batch_size_changes_nothing(tiny_dit, calibration):
    weights = target_weights(tiny_dit, DiT())
    pieces = alpha_curve(tiny_dit, split(calibration, 5), DiT(), weights, SEARCH, (0.5,))
    whole = alpha_curve(tiny_dit, [calibration], DiT(), weights, SEARCH, (0.5,))
    assert torch.equal(pieces.errors, whole.errors)


def test_a_clear_winner_is_chosen():
    errors = torch.tensor([[5.0, 6.0, 5.5], [3.0, 4.0, 3.4], [1.0, 1.1, 1.2]]).double()
    assert AlphaCurve((0.0, 0.5, 1.5), errors).chosen() == 1.5


def test_where_the_difference_is_noise_the_one_nearest_the_papers_is_chosen():
    """1.5 has the least mean, but is worse than 0.75 and 0.5 on some samples."""
    errors = torch.tensor([[9.0, 9.0, 9.0], [1.0, 2.0, 3.0], [1.1, 2.1, 2.9], [3.0, 0.9, 2.0]])
    assert AlphaCurve((0.0, 0.5, 0.75, 1.5), errors.double()).chosen() == 0.5


def test_settling_replaces_the_search_by_its_outcome_and_leaves_others_alone(tiny_dit, calibration):
    weights = target_weights(tiny_dit, DiT())
    settled = settle(tiny_dit, [calibration], DiT(), weights, SEARCH)
    chosen = curve_of(tiny_dit, calibration).chosen()
    assert settled.saliency == Energy(1.0, chosen)
    assert settle(tiny_dit, [calibration], DiT(), weights, settled) is settled


def test_pruning_by_search_is_pruning_by_what_it_chooses(tiny_dit, calibration):
    other = copy.deepcopy(tiny_dit)
    chosen = curve_of(tiny_dit, calibration).chosen()
    searched = ditprune.prune(tiny_dit, [calibration], family=DiT(), recipe=SEARCH)
    given = Recipe(Energy(1.0, chosen), Layer(), 0.6)
    expected = ditprune.prune(other, [calibration], family=DiT(), recipe=given)
    assert isinstance(searched.masks, MaskSet)
    assert searched.masks.hash() == expected.masks.hash()


def test_too_few_samples_to_hold_out_are_an_error(tiny_dit, calibration):
    with pytest.raises(ValueError, match="every 4th calibration sample, and there are 3"):
        curve_of(tiny_dit, calibration._replace(**{
            name: value[:3] for name, value in calibration._asdict().items()
        }))  # fmt: skip
