import numpy as np
import pytest
import torch
from contracts import GramRepairContract, masked_only, repair_problem, repaired_by

from ditprune.repair import LeastSquares
from ditprune.repair.base import relative_error
from ditprune.repair.least_squares import conjugate_gradients


def closed_form(problem, damping: float) -> np.ndarray:
    """Row by row: the normal equations on the kept inputs, for what the pruned ones gave."""
    x, weight = problem.tokens.double().numpy(), problem.weight.double().numpy()
    hessian = x.T @ x / len(x)
    hessian += damping * np.trace(hessian) / len(hessian) * np.eye(len(hessian))
    solution = np.zeros_like(weight)
    for row, kept in enumerate(problem.mask.numpy()):
        right = (weight[row] @ hessian)[kept]
        solution[row, kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], right)
    return solution


class TestLeastSquares(GramRepairContract):
    repair = LeastSquares()

    @pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
    def test_every_row_agrees_with_its_closed_form(self, sparsity):
        problem = repair_problem(sparsity=sparsity)
        repaired = repaired_by(LeastSquares(tolerance=1e-8), problem)
        assert np.allclose(repaired.weight.numpy(), closed_form(problem, 0.01), atol=1e-5)
        assert torch.equal(repaired.mask, problem.mask)

    def test_without_damping_it_is_the_least_squares_fit_to_the_outputs(self):
        problem = repair_problem(sparsity=0.6)
        repaired = repaired_by(LeastSquares(damping=0.0, tolerance=1e-9), problem)
        x = problem.tokens.double().numpy()
        outputs = x @ problem.weight.double().numpy().T
        for row, kept in enumerate(problem.mask.numpy()):
            fit = np.linalg.lstsq(x[:, kept], outputs[:, row], rcond=None)[0]
            assert np.allclose(repaired.weight[row, kept].numpy(), fit, atol=1e-4)

    def test_a_corrected_bias_makes_it_the_fit_with_an_intercept(self):
        problem = repair_problem(sparsity=0.6)
        solver = LeastSquares(correct_bias=True, damping=0.0, tolerance=1e-9)
        repaired = repaired_by(solver, problem)
        x = problem.tokens.double().numpy()
        outputs = x @ problem.weight.double().numpy().T
        for row, kept in enumerate(problem.mask.numpy()):
            columns = np.column_stack([x[:, kept], np.ones(len(x))])
            fit = np.linalg.lstsq(columns, outputs[:, row], rcond=None)[0]
            assert np.isclose(repaired.bias_shift[row].item(), fit[-1], atol=1e-3)

    def test_the_default_tolerance_leaves_next_to_no_error(self):
        problem = repair_problem()
        exact = repaired_by(LeastSquares(tolerance=1e-10), problem)
        errors = [
            relative_error(problem.weight, repaired, problem.stats)
            for repaired in (repaired_by(self.repair, problem), exact)
        ]
        assert errors[0] < errors[1] * (1 + 1e-3)

    def test_iterations_that_end_too_early_still_lower_the_error(self):
        problem = repair_problem()
        errors = [
            relative_error(
                problem.weight, repaired_by(LeastSquares(max_iterations=n), problem), problem.stats
            )
            for n in (0, 1, 2, 5, 20)
        ]
        alone = relative_error(problem.weight, masked_only(problem), problem.stats)
        assert errors[0] == pytest.approx(alone)
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / 2

    def test_a_weight_into_which_nothing_flows_stays_as_it_was(self):
        problem = repair_problem()
        problem.stats.gram[:, 3] = 0
        problem.stats.gram[3] = 0
        problem.mask[:, 3] = True
        assert torch.equal(repaired_by(self.repair, problem).weight[:, 3], problem.weight[:, 3])

    def test_rows_that_are_done_wait_for_the_others(self):
        """A row that starts at its solution must not divide zero by zero meanwhile."""
        target = torch.eye(3, 4, dtype=torch.float64)
        target[1] = 0
        curvature = torch.eye(4, dtype=torch.float64) + 0.1
        solution = conjugate_gradients(target, torch.ones(3, 4).bool(), curvature, 1e-12, 50)
        assert torch.allclose(solution @ curvature, target)

    def test_tolerance_and_damping_must_make_sense(self):
        with pytest.raises(ValueError, match="tolerance"):
            LeastSquares(tolerance=0.0)
        with pytest.raises(ValueError, match="damping"):
            LeastSquares(damping=-1.0)
