import numpy as np
import pytest
import torch
from contracts import GramRepairContract, masked_only, problem_of, repair_problem, repaired_by

from ditprune.cholesky import factorise
from ditprune.repair import ADMM, KroneckerADMM
from ditprune.repair.base import LayerProblem, hessian_of
from ditprune.repair.kronecker import Curvature, Spectrum, mixed, refine


def moments(num_outputs: int = 12, rank: int = 3, noise: float = 0.05) -> torch.Tensor:
    """G of outputs whose errors can make up for each other: few directions count."""
    directions = torch.randn(rank, num_outputs, generator=torch.Generator().manual_seed(8)).double()
    return directions.T @ directions + noise * torch.eye(num_outputs, dtype=torch.float64)


def solved(repair, problem, outputs=None):
    weight, _, stats, pools, mask = problem
    return repair.repair(weight, mask, stats, pools, True, outputs)


def image_error(problem, repaired, outputs) -> float:
    """tr G D H D^T, from the tokens themselves."""
    lost = problem.tokens.double().numpy() @ (problem.weight - repaired.weight).double().numpy().T
    return np.einsum("to,op,tp->", lost, outputs.numpy(), lost) / len(lost)


def tiny(sparsity: float = 0.5):
    return repair_problem(sparsity=sparsity, shape=(6, 8))


def tiny_curvature(share: float = 0.05) -> Curvature:
    damped = factorise(tiny().stats.second_moment(), 0.001)[0]
    return Curvature.of(damped, mixed(moments(6), share))


def kron(curvature: Curvature) -> np.ndarray:
    """The matrix that takes the rows of X, one after another, to those of G X H."""
    return np.kron(curvature.outputs.numpy(), curvature.inputs.numpy())


def dense_solution(system: np.ndarray, goal: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The least of (x - goal)^T A (x - goal) over x that are zero outside the mask."""
    kept, found = mask.flatten(), np.zeros(goal.size)
    found[kept] = np.linalg.solve(system[np.ix_(kept, kept)], (system @ goal.flatten())[kept])
    return found.reshape(goal.shape)


def alps_on_kron(
    goal: np.ndarray, mask: np.ndarray, system: np.ndarray, num_iterations: int
) -> np.ndarray:
    """The mask of ALPS (arXiv 2406.07831, Alg. 1) where the Hessian is that of all weights."""
    goal, mask, penalty = goal.flatten(), mask.flatten(), 0.03
    before, num_kept = mask, mask.sum()
    sparse, dual = goal * mask, np.zeros_like(goal)
    for iteration in range(1, num_iterations + 1):
        right = system @ goal - dual + penalty * sparse
        full = np.linalg.solve(system + penalty * np.eye(len(system)), right)
        pulled = full + dual / penalty
        mask = np.abs(pulled) >= np.sort(np.abs(pulled))[-num_kept]
        sparse = pulled * mask
        dual = dual + penalty * (full - sparse)
        if iteration % 3 == 0:
            share = (mask & ~before).sum() / num_kept
            penalty *= 1.3 if share >= 0.1 else 1.2 if share >= 0.005 else 1.1
            before = mask
    return mask


class TestKroneckerADMM(GramRepairContract):
    repair = KroneckerADMM()

    def test_without_importance_all_outputs_count_alike_and_apart(self):
        problem = repair_problem()
        without = solved(self.repair, problem)
        identity = solved(self.repair, problem, torch.eye(12, dtype=torch.float64))
        assert all(torch.equal(a, b) for a, b in zip(without, identity, strict=True))
        assert not torch.equal(without.weight, solved(self.repair, problem, moments()).weight)

    @pytest.mark.parametrize(
        ("kind", "sparsity"), [("layer", 0.5), ("layer", 0.7), ("row", 0.7), ("2:4", 0.5)]
    )
    def test_where_outputs_are_correlated_the_images_lose_far_less(self, kind, sparsity):
        """Than by ADMM, which ignores G, and than where only the diagonal of G is known."""
        problem, outputs = repair_problem(kind, sparsity, 400, (24, 64)), moments(24)
        error, blind, apart = (
            image_error(problem, solved(repair, problem, outputs), outputs)
            for repair in (self.repair, ADMM(), KroneckerADMM(output_damping=1.0))
        )
        assert error < 0.2 * blind
        assert error < 0.2 * apart

    @pytest.mark.parametrize("kind", ["layer", "row", "2:4"])
    def test_with_importance_every_pool_still_keeps_exactly_as_many(self, kind):
        for sparsity in (0.5,) if kind == "2:4" else (0.13, 0.77, 0.99):
            problem = repair_problem(kind, sparsity)
            repaired = solved(self.repair, problem, moments())
            kept = repaired.mask.reshape(len(problem.pools.num_kept), -1).sum(1)
            assert torch.equal(kept, problem.pools.num_kept)
            assert not repaired.weight[~repaired.mask].any()

    @pytest.mark.parametrize("num_iterations", [1, 2, 9, 18])
    def test_its_masks_are_those_of_alps_on_the_whole_kronecker_product(self, num_iterations):
        problem, curvature = tiny(), tiny_curvature()
        goal = curvature.scaled(problem.weight)
        repair = KroneckerADMM(max_iterations=num_iterations)
        found = repair.find_mask(goal, problem.mask, curvature, problem.pools)
        expected = alps_on_kron(goal.numpy(), problem.mask.numpy(), kron(curvature), num_iterations)
        assert np.array_equal(found.flatten().numpy(), expected)
        assert not torch.equal(found, problem.mask)

    @pytest.mark.parametrize("outputs", [None, moments(6)])
    def test_what_it_keeps_has_the_best_weights_there_are_for_it(self, outputs):
        """The least of tr G D H D^T for damped factors in the units of the model."""
        problem = tiny()
        hessian = hessian_of(problem.stats, False)
        repair = KroneckerADMM(num_refinements=400)
        layer = LayerProblem(problem.weight, problem.mask, problem.stats, hessian, outputs)
        weight, mask = repair.solve(layer, problem.pools)
        damped = factorise(hessian, 0.001)[0].numpy()
        given = np.eye(6) if outputs is None else outputs.numpy()
        blurred = 0.95 * given + 0.05 * np.diag(np.diag(given))
        expected = dense_solution(
            np.kron(blurred, damped), problem.weight.double().numpy(), mask.numpy()
        )
        assert np.allclose(weight.numpy(), expected, atol=1e-3 * np.abs(expected).max())
        assert not np.allclose(expected, problem.weight.numpy() * mask.numpy(), atol=0.03)

    def test_every_refinement_lowers_the_error(self):
        problem, outputs = repair_problem(sparsity=0.7), moments()
        errors = [
            image_error(
                problem, solved(KroneckerADMM(num_refinements=n), problem, outputs), outputs
            )
            for n in (0, 2, 10, 60)
        ]
        assert errors[0] > 1.2 * errors[1]
        assert errors == sorted(errors, reverse=True)

    def test_how_much_an_output_counts_is_as_if_its_weights_were_larger(self):
        """G = diag(d) on W is G = 1 on sqrt(d) W, in mask and weights."""
        problem = repair_problem(sparsity=0.7)
        loud = torch.logspace(-2, 2, 12, base=4, dtype=torch.float64)
        rows = loud.sqrt().float().unsqueeze(1)
        one = solved(self.repair, problem, loud.diag())
        other = solved(self.repair, problem._replace(weight=rows * problem.weight))
        assert (one.mask != other.mask).float().mean() < 0.01
        alike = one.mask == other.mask
        assert torch.allclose((rows * one.weight)[alike], other.weight[alike], atol=0.02)
        kept = one.mask.sum(1)
        assert kept[-3:].sum() > 1.5 * kept[:3].sum()

    def test_the_scale_of_importance_does_not_matter(self):
        problem = repair_problem(sparsity=0.7)
        one, other = (solved(self.repair, problem, s * moments()) for s in (1.0, 2.0**-30))
        assert torch.equal(one.mask, other.mask)
        assert torch.allclose(one.weight, other.weight, rtol=1e-5)

    @pytest.mark.parametrize("kind", ["layer", "row", "2:4"])
    def test_outputs_that_do_nothing_to_the_images_break_nothing(self, kind):
        problem, outputs = repair_problem(kind), moments()
        dead = torch.tensor([2, 5])
        outputs[dead], outputs[:, dead] = 0.0, 0.0
        repaired = solved(self.repair, problem, outputs)
        assert repaired.weight.isfinite().all()
        assert int(repaired.mask.sum()) == int(problem.mask.sum())
        assert image_error(problem, repaired, outputs) < 0.1 * image_error(
            problem, masked_only(problem), outputs
        )
        if kind == "layer":
            assert not repaired.mask[dead].any()

    def test_if_no_output_does_anything_the_number_is_still_exact(self):
        problem = repair_problem()
        repaired = solved(self.repair, problem, torch.zeros(12, 12, dtype=torch.float64))
        assert repaired.weight.isfinite().all()
        assert int(repaired.mask.sum()) == int(problem.mask.sum())

    def test_importance_of_fewer_directions_than_outputs_breaks_nothing(self):
        problem, outputs = repair_problem(), moments(noise=0.0)
        repaired = solved(self.repair, problem, outputs)
        assert repaired.weight.isfinite().all()
        assert repaired.weight.abs().max() < 100 * problem.weight.abs().max()

    def test_importance_is_left_as_it_was(self):
        outputs = moments()
        solved(self.repair, repair_problem(), outputs)
        assert torch.equal(outputs, moments())

    def test_the_scale_of_inputs_and_weights_does_not_matter(self):
        problem = repair_problem()
        scaled = problem_of(1e-2 * problem.weight, 1e3 * problem.tokens)
        masks = [repaired_by(self.repair, p).mask for p in (problem, scaled)]
        assert (masks[0] != masks[1]).float().mean() < 0.01


@pytest.mark.parametrize("penalty", [1e-3, 0.03, 10.0])
def test_the_spectrum_solves_the_kronecker_system(penalty):
    curvature = tiny_curvature()
    right = torch.randn(6, 8, generator=torch.Generator().manual_seed(9))
    system = kron(curvature) + penalty * np.eye(48)
    expected = np.linalg.solve(system, right.double().numpy().flatten()).reshape(6, 8)
    found = Spectrum.of(curvature).solve(right, penalty).numpy()
    assert np.allclose(found, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_refined_weights_are_the_dense_solution_on_the_mask(share):
    curvature, mask = tiny_curvature(share), tiny(0.6).mask
    goal = curvature.scaled(tiny().weight)
    start = torch.zeros_like(goal)
    found = refine(start, goal, mask, curvature, 500)
    expected = dense_solution(kron(curvature), goal.numpy(), mask.numpy())
    assert np.allclose(found.numpy(), expected, atol=1e-3 * np.abs(expected).max())
    assert not found[~mask].any()
    assert not start.any()


def test_refining_the_best_weights_changes_nothing():
    curvature, mask = tiny_curvature(), torch.ones(6, 8, dtype=torch.bool)
    goal = curvature.scaled(tiny().weight)
    assert torch.equal(refine(goal, goal, mask, curvature, 60), goal)


def test_scaled_factors_have_a_diagonal_of_ones_and_the_scales_come_off_again():
    curvature, weight = tiny_curvature(), tiny().weight.double()
    for factor in (curvature.outputs, curvature.inputs):
        assert torch.allclose(factor.diagonal(), torch.ones(len(factor), dtype=torch.float64))
    assert torch.allclose(curvature.unscaled(curvature.scaled(weight)), weight)
    damped = factorise(tiny().stats.second_moment(), 0.001)[0]
    outputs = mixed(moments(6), 0.05)
    size = (outputs @ weight @ damped).mul(weight).sum()
    scaled = curvature.scaled(weight)
    assert torch.isclose(curvature.times(scaled).mul(scaled).sum(), size)


def test_mixing_leaves_the_diagonal_and_takes_a_share_of_the_rest():
    outputs = moments(6)
    found, expected = mixed(outputs, 0.25).numpy(), 0.75 * outputs.numpy()
    np.fill_diagonal(expected, outputs.diagonal().numpy())
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.linalg.eigvalsh(mixed(torch.zeros(3, 3, dtype=torch.float64), 0.05)).min() > 0
