import numpy as np
import pytest
import torch
from contracts import masked_only, repair_problem, repaired_by

from ditprune.repair import LeastSquares, Repaired
from ditprune.repair.base import hessian_of, quadratic, relative_error


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_relative_error_is_that_of_the_outputs_sample_by_sample(with_bias):
    problem = repair_problem()
    generator = torch.Generator().manual_seed(7)
    shift = torch.randn(12, generator=generator) if with_bias else torch.zeros(12)
    repaired = masked_only(problem)._replace(bias_shift=shift)
    x = problem.tokens.double().numpy()
    outputs = x @ problem.weight.double().numpy().T
    pruned = x @ repaired.weight.double().numpy().T + shift.double().numpy()
    expected = ((outputs - pruned) ** 2).sum() / (outputs**2).sum()
    found = relative_error(problem.weight, repaired, problem.stats)
    assert np.isclose(found, expected, rtol=1e-5)


def test_the_error_of_no_layer_at_all_is_one_and_of_the_dense_layer_zero():
    weight, _, stats, _, mask = repair_problem()
    shift = torch.zeros(12)
    assert relative_error(weight, Repaired(0 * weight, mask, shift), stats) == pytest.approx(1)
    assert relative_error(weight, Repaired(weight, mask, shift), stats) == 0
    assert relative_error(0 * weight, Repaired(0 * weight, mask, shift), stats) == 0


def test_the_hessian_is_the_second_moment_or_the_covariance():
    _, tokens, stats, _, _ = repair_problem()
    x = tokens.double().numpy()
    assert np.allclose(hessian_of(stats, False).numpy(), x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    covariance = np.cov(x.T, bias=True)
    assert np.allclose(hessian_of(stats, True).numpy(), covariance, rtol=1e-4, atol=1e-4)


def test_quadratic_is_the_mean_square_of_the_outputs():
    weight, tokens, stats, _, _ = repair_problem()
    outputs = tokens.double() @ weight.double().T
    assert quadratic(weight, hessian_of(stats, False)) == pytest.approx(
        outputs.square().sum(1).mean().item(), rel=1e-5
    )


def test_weights_are_solved_for_knowing_that_the_bias_will_be_corrected():
    """Correcting the bias of weights that were solved for without it is worse."""
    problem = repair_problem(sparsity=0.7)
    both = repaired_by(LeastSquares(correct_bias=True, damping=0.0), problem)
    uncorrected = repaired_by(LeastSquares(damping=0.0), problem)
    lost = (problem.weight - uncorrected.weight).double() @ problem.stats.mean()
    after = uncorrected._replace(bias_shift=lost.float())
    errors = [relative_error(problem.weight, r, problem.stats) for r in (both, after, uncorrected)]
    assert errors[0] < 0.999 * errors[1]
    assert errors[1] < errors[2]


def test_a_layer_without_bias_is_solved_for_without_one():
    problem = repair_problem(sparsity=0.7)
    asked = repaired_by(LeastSquares(correct_bias=True), problem, has_bias=False)
    assert torch.equal(asked.weight, repaired_by(LeastSquares(), problem).weight)


def test_the_bias_is_that_of_the_rounded_weights():
    """In bfloat16 the rounding of the weights shifts the means, too."""
    problem = repair_problem()
    problem = problem._replace(weight=problem.weight.bfloat16())
    repaired = repaired_by(LeastSquares(correct_bias=True), problem)
    lost = (problem.weight.double() - repaired.weight.double()) @ problem.stats.mean()
    assert torch.equal(repaired.bias_shift, lost.bfloat16())
