import copy

import torch
from conftest import split

from ditprune.families import DiT
from ditprune.layers import target_weights
from ditprune.prediction import Judge


def judge_of(model, batches) -> Judge:
    return Judge.of(model, batches, DiT(), next(iter(target_weights(model, DiT()).values())))


def test_the_error_is_relative_to_what_the_dense_model_predicted(tiny_dit, calibration):
    """A model whose last layer says twice as much is wrong by as much as it says."""
    judge = judge_of(tiny_dit, [calibration])
    with torch.no_grad():
        for parameter in tiny_dit.proj_out_2.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(judge.errors(tiny_dit), torch.ones(12).double())


def test_a_model_that_is_as_it_was_makes_no_error_however_samples_are_batched(
    tiny_dit, calibration
):
    judge = judge_of(tiny_dit, split(calibration, 5))
    assert len(judge.dense) == 12
    assert judge.errors(copy.deepcopy(tiny_dit)).eq(0).all()


def test_predictions_are_those_of_evaluation_mode_and_the_mode_stays(tiny_dit, calibration):
    tiny_dit.train()
    judge_of(tiny_dit, [calibration])
    assert tiny_dit.training
