import numpy as np
import pytest
import torch
from contracts import masked_only, repair_problem, repaired_by, runs

from ditprune.activations import ActivationStats
from ditprune.repair import ADMM, BiasCorrection, LeastSquares, Repaired
from ditprune.repair.base import goal_of, hessian_of, quadratic, relative_error


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


def two_inputs(num_tokens: int = 400, num_inputs: int = 8):
    """What flows into a layer of a pruned model, and at the same places of the dense one."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(num_tokens, num_inputs, generator=generator) + 1.0
    mixing = torch.randn(num_inputs, num_inputs, generator=generator) / num_inputs**0.5
    noise = torch.randn(num_tokens, num_inputs, generator=generator)
    return x, x @ mixing + 0.5 * noise - 2.0


def following(x: torch.Tensor, dense: torch.Tensor | None) -> ActivationStats:
    stats = ActivationStats(x.shape[1], with_gram=True, with_dense=True)
    stats.add(x, dense=dense)
    return stats


def best_weights(
    weight: torch.Tensor, x: torch.Tensor, dense: torch.Tensor, damping: float, centred: bool
) -> np.ndarray:
    """The least of E |W d - B x|^2 + damping mean(E x^2) |W - B|^2 over B, by QR of the tokens."""
    w, x, d = (part.double().numpy() for part in (weight, x, dense))
    if centred:
        x, d = x - x.mean(0), d - d.mean(0)
    pull = np.sqrt(damping * (x**2).mean() * len(x)) * np.eye(x.shape[1])
    rows, wanted = np.concatenate([x, pull]), np.concatenate([d @ w.T, pull @ w.T])
    return np.linalg.lstsq(rows, wanted, rcond=None)[0].T


def some_weight(num_inputs: int = 8) -> torch.Tensor:
    return torch.randn(5, num_inputs, generator=torch.Generator().manual_seed(10))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("num_tokens", [4, 400])
def test_where_the_inputs_are_the_dense_models_the_goal_is_the_dense_weight(num_tokens, centred):
    """Also in directions of which too few tokens tell: damping pulls nowhere else."""
    x, _ = two_inputs(num_tokens)
    for dense in (None, x):
        goal = goal_of(some_weight(), following(x, dense), centred)
        assert torch.allclose(goal, some_weight().double(), atol=1e-5)


@pytest.mark.parametrize("centred", [False, True])
def test_the_goal_is_what_says_most_of_the_dense_outputs_by_the_inputs_there_are(centred):
    x, dense = two_inputs()
    goal = goal_of(some_weight(), following(x, dense), centred).numpy()
    exact, undamped = (
        best_weights(some_weight(), x, dense, damping, centred) for damping in (0.001, 0.0)
    )
    assert np.allclose(goal, exact, atol=1e-4)
    assert np.allclose(goal, undamped, atol=0.01)
    assert not np.allclose(undamped, some_weight().numpy(), atol=0.5)
    other = best_weights(some_weight(), x, dense, 0.0, not centred)
    assert not np.allclose(undamped, other, atol=0.1)


@pytest.mark.parametrize("num_tokens", [3, 400])
def test_inputs_too_few_to_tell_leave_the_weights_near_the_dense_ones(num_tokens):
    x, dense = two_inputs(num_tokens)
    x[:, 3] = 0
    goal = goal_of(some_weight(), following(x, dense), False)
    assert goal.isfinite().all()
    assert torch.allclose(goal[:, 3], some_weight()[:, 3].double(), atol=1e-6)
    assert goal.abs().max() < 20


def repaired_behind(
    repair, stats: ActivationStats, num_kept: int = 24, has_bias: bool = True
) -> Repaired:
    pools = runs("layer", some_weight(), 1 - num_kept / 40)
    mask = pools.keep(some_weight().abs())
    return repair.repair(some_weight(), mask, stats, pools, has_bias)


@pytest.mark.parametrize(
    "repair",
    [LeastSquares(correct_bias=True), ADMM(correct_bias=True), BiasCorrection()],
    ids=lambda repair: type(repair).__name__,
)
def test_a_corrected_bias_brings_back_the_dense_models_mean_outputs(repair):
    """Not those that the dense weights give for what flows in behind pruned layers."""
    x, dense = two_inputs()
    weight, _, shift = repaired_behind(repair, following(x, dense))
    wanted = dense.mean(0) @ some_weight().T
    assert torch.allclose(x.mean(0) @ weight.T + shift, wanted, atol=1e-4)
    assert not torch.allclose(x.mean(0) @ some_weight().T, wanted, atol=1.0)


def test_a_layer_without_bias_gets_none_behind_pruned_layers_either():
    stats = following(*two_inputs())
    asked = repaired_behind(LeastSquares(correct_bias=True), stats, has_bias=False)
    plain = repaired_behind(LeastSquares(), stats)
    assert not asked.bias_shift.any()
    assert torch.equal(asked.weight, plain.weight)


@pytest.mark.parametrize("centred", [False, True])
def test_a_repair_behind_pruned_layers_is_the_regression_of_the_dense_outputs(centred):
    x, dense = two_inputs()
    repair = LeastSquares(correct_bias=centred, damping=0.0)
    weight, mask, shift = repaired_behind(repair, following(x, dense))
    ones = np.ones((len(x), int(centred)))
    for row in range(5):
        kept = mask[row].numpy()
        inputs = np.concatenate([x.double().numpy()[:, kept], ones], 1)
        outputs = (dense @ some_weight()[row]).double().numpy()
        expected = np.linalg.lstsq(inputs, outputs, rcond=None)[0]
        assert np.allclose(weight[row].numpy()[kept], expected[: kept.sum()], atol=0.02)
        if centred:
            assert shift[row].item() == pytest.approx(expected[-1], abs=0.02)


def test_a_repair_that_follows_the_dense_model_is_nearer_to_it_than_one_that_does_not():
    x, dense = two_inputs()
    alone = ActivationStats(8, with_gram=True)
    alone.add(x)
    wanted = dense @ some_weight().T
    errors = [
        (x @ weight.T + shift - wanted).square().mean().item()
        for weight, _, shift in (
            repaired_behind(LeastSquares(correct_bias=True), stats)
            for stats in (following(x, dense), alone)
        )
    ]
    assert errors[0] < 0.5 * errors[1]
