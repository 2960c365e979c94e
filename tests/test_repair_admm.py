import numpy as np
import pytest
import torch
from contracts import GramRepairContract, problem_of, repair_problem, repaired_by

from ditprune.cholesky import factorise
from ditprune.repair import ADMM, LeastSquares, SparseGPT
from ditprune.repair.admm import growth, stable_mask
from ditprune.repair.base import relative_error


def error_of(repair, problem) -> float:
    return relative_error(problem.weight, repaired_by(repair, problem), problem.stats)


def published(problem, penalty: float, num_iterations: int) -> np.ndarray:
    """The mask of ALPS (arXiv 2406.07831, Alg. 1), by dense inverses in float64."""
    x, weight = problem.tokens.double().numpy(), problem.weight.double().numpy()
    hessian = x.T @ x / len(x)
    hessian += 0.01 * np.trace(hessian) / len(hessian) * np.eye(len(hessian))
    scale = np.sqrt(np.diag(hessian))
    hessian, weight = hessian / np.outer(scale, scale), weight * scale
    mask = before = problem.mask.numpy()
    sparse, dual = weight * mask, np.zeros_like(weight)
    for iteration in range(1, num_iterations + 1):
        right = weight @ hessian - dual + penalty * sparse
        full = right @ np.linalg.inv(hessian + penalty * np.eye(len(hessian)))
        pulled = full + dual / penalty
        mask = pulled**2 >= np.sort(pulled**2, axis=None)[-problem.mask.sum()]
        sparse = pulled * mask
        dual = dual + penalty * (full - sparse)
        if iteration % 3 == 0:
            share = (mask & ~before).sum() / mask.sum()
            penalty *= 1.3 if share >= 0.1 else 1.2 if share >= 0.005 else 1.1
            before = mask
    return mask


class TestADMM(GramRepairContract):
    repair = ADMM()

    @pytest.mark.parametrize("num_iterations", [1, 2, 9, 18])
    def test_its_masks_agree_with_the_published_algorithm(self, num_iterations):
        problem = repair_problem()
        damped = factorise(problem.stats.second_moment(), 0.01)[0]
        found = stable_mask(
            problem.weight, problem.mask, damped, problem.pools, 0.02, num_iterations
        )
        expected = published(problem, 0.02, num_iterations)
        assert (found.numpy() != expected).mean() < 0.01
        assert num_iterations < 9 or (found != problem.mask).float().mean() > 0.05

    @pytest.mark.parametrize(
        ("kind", "sparsity", "share"),
        [("layer", 0.8, 0.7), ("layer", 0.5, 0.9), ("row", 0.7, 0.9), ("2:4", 0.5, 0.9)],
    )
    def test_where_channels_are_correlated_it_beats_least_squares_by_far(
        self, kind, sparsity, share
    ):
        problem = repair_problem(kind, sparsity, num_tokens=400, shape=(24, 64))
        assert error_of(self.repair, problem) < share * error_of(LeastSquares(), problem)
        assert error_of(self.repair, problem) < 0.5 * error_of(SparseGPT(), problem)

    @pytest.mark.parametrize("penalty", [1e-3, 0.02, 1e3])
    def test_a_bad_penalty_costs_at_most_the_gain_over_least_squares(self, penalty):
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            weight, x = (torch.randn(n, 8, generator=generator) for n in (3, 40))
            problem = problem_of(weight, x, sparsity=0.8)
            assert error_of(ADMM(penalty=penalty), problem) <= error_of(LeastSquares(), problem)

    def test_a_given_mask_that_is_better_stays(self, monkeypatch):
        problem = repair_problem(sparsity=0.7)
        worst = problem.pools.keep(-problem.weight.abs())
        monkeypatch.setattr("ditprune.repair.admm.stable_mask", lambda *_: worst)
        assert torch.equal(repaired_by(self.repair, problem).mask, problem.mask)

    def test_what_it_keeps_has_the_best_weights_there_are_for_it(self):
        problem = repair_problem()
        repaired = repaired_by(self.repair, problem)
        again = repaired_by(LeastSquares(), problem._replace(mask=repaired.mask))
        assert torch.allclose(repaired.weight, again.weight, atol=1e-6)

    def test_the_scale_of_inputs_and_weights_does_not_matter(self):
        problem = repair_problem()
        scaled = problem_of(1e-2 * problem.weight, 1e3 * problem.tokens)
        masks = [repaired_by(self.repair, p).mask for p in (problem, scaled)]
        assert (masks[0] != masks[1]).float().mean() < 0.01

    def test_the_penalty_grows_the_slower_the_less_the_mask_changes(self):
        mask = torch.arange(1000).reshape(10, 100) < 500
        for exchanged, expected in ((50, 1.3), (49, 1.2), (3, 1.2), (2, 1.1)):
            moved = mask.clone().flatten()
            moved[:exchanged] = False
            moved[500 : 500 + exchanged] = True
            assert growth(mask, moved.reshape(10, 100)) == expected

    def test_penalty_and_damping_must_make_sense(self):
        with pytest.raises(ValueError, match="penalty"):
            ADMM(penalty=0.0)
        with pytest.raises(ValueError, match="damping"):
            ADMM(damping=-1.0)
