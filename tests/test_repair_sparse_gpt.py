import numpy as np
import pytest
import torch
from contracts import (
    GramRepairContract,
    masked_only,
    problem_of,
    repair_problem,
    repaired_by,
    runs,
)

from ditprune.granularity import Pools, Runs
from ditprune.repair import SparseGPT
from ditprune.repair.base import relative_error


def published(weight, x, block: int, group: int = 0, sparsity: float = 0.5, mask=None):
    """Algorithm 1 of arXiv 2301.00774, column by column and without lazy updates."""
    weight, num_inputs = weight.copy(), weight.shape[1]
    hessian = x.T @ x / len(x)
    hessian += 0.01 * np.trace(hessian) / num_inputs * np.eye(num_inputs)
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    kept = np.ones(weight.shape, dtype=bool) if mask is None else mask.copy()
    for j in range(num_inputs):
        if mask is None and j % (group or block) == 0:
            part = slice(j, min(j + (group or block), num_inputs))
            score = weight[:, part] ** 2 / np.diag(factor)[part] ** 2
            if group:
                kept[:, part] = score.argsort(1).argsort(1) >= group // 2
            else:
                rank = score.ravel().argsort().argsort()
                kept[:, part] = (rank >= round(score.size * sparsity)).reshape(score.shape)
        error = np.where(kept[:, j], 0, weight[:, j] / factor[j, j])
        weight[:, j:] -= np.outer(error, factor[j, j:])
    return weight * kept, kept


def inputs_of(problem) -> tuple[np.ndarray, np.ndarray]:
    return problem.weight.double().numpy(), problem.tokens.double().numpy()


class Other(Pools):
    """The same pools, of which nothing is known but how they keep."""

    def __init__(self, pools: Pools) -> None:
        self.name, self.pools = "other", pools

    def keep(self, score):
        return self.pools.keep(score)


class TestSparseGPT(GramRepairContract):
    repair = SparseGPT(block_size=8)

    @pytest.mark.parametrize("block_size", [8, 16, 32])
    def test_it_agrees_with_the_published_algorithm(self, block_size):
        problem = repair_problem()
        weight, kept = published(*inputs_of(problem), block_size)
        repaired = repaired_by(SparseGPT(block_size=block_size), problem)
        assert np.array_equal(repaired.mask.numpy(), kept)
        assert np.allclose(repaired.weight.numpy(), weight, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("block_size", [3, 8, 128])
    def test_it_agrees_with_the_published_algorithm_on_two_of_four(self, block_size):
        problem = repair_problem("2:4")
        weight, kept = published(*inputs_of(problem), 128, group=4)
        repaired = repaired_by(SparseGPT(block_size=block_size), problem)
        assert np.array_equal(repaired.mask.numpy(), kept)
        assert np.allclose(repaired.weight.numpy(), weight, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("block_size", [7, 128])
    def test_on_a_given_mask_it_agrees_with_the_published_update(self, block_size):
        problem = repair_problem()
        weight, _ = published(*inputs_of(problem), 128, mask=problem.mask.numpy())
        repaired = repaired_by(SparseGPT(adaptive=False, block_size=block_size), problem)
        assert torch.equal(repaired.mask, problem.mask)
        assert np.allclose(repaired.weight.numpy(), weight, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("kind", ["layer", "row"])
    def test_every_block_gives_the_same_share_up_to_one_weight_of_a_pool(self, kind):
        problem = repair_problem(kind, sparsity=0.63)
        mask = repaired_by(SparseGPT(block_size=10), problem).mask
        for start in (0, 10, 20, 30):
            block = mask[:, start : start + 10].reshape(len(problem.pools.num_kept), -1)
            fair = 0.63 * block.shape[1]
            assert ((block.logical_not().sum(1) - fair).abs() <= 2).all()

    def test_groups_may_keep_different_numbers(self):
        problem = repair_problem("2:4")
        wanted = torch.arange(96) % 5
        problem = problem._replace(pools=Runs("some of 4", wanted))
        mask = repaired_by(self.repair, problem).mask
        assert torch.equal(mask.reshape(96, 4).sum(1), wanted)

    def test_other_pools_keep_their_numbers_and_mend_the_error_as_well(self):
        problem = repair_problem("layer")
        rows = problem._replace(pools=Other(runs("row", problem.weight, 0.5)))
        assert torch.equal(repaired_by(self.repair, rows).mask.sum(1), torch.full((12,), 16))
        layer = problem._replace(pools=Other(problem.pools))
        alone = relative_error(problem.weight, masked_only(problem), problem.stats)
        known, unknown = (
            relative_error(problem.weight, repaired_by(self.repair, p), problem.stats)
            for p in (problem, layer)
        )
        assert unknown < min(1.2 * known, alone / 2)

    def test_its_own_mask_is_better_than_the_given_one(self):
        """Where correlations are mild: where they are strong, its last columns pay for all."""
        generator = torch.Generator().manual_seed(6)
        weight, mixing = (torch.randn(64, 64, generator=generator) for _ in range(2))
        x = torch.randn(500, 64, generator=generator) @ (mixing / 8 + torch.eye(64))
        problem = problem_of(weight, x, sparsity=0.7)
        own, given = (
            relative_error(problem.weight, repaired_by(repair, problem), problem.stats)
            for repair in (SparseGPT(block_size=32), SparseGPT(adaptive=False))
        )
        assert own < 0.95 * given

    def test_a_weight_into_which_nothing_flows_goes_first(self):
        problem = repair_problem()
        problem.tokens[:, 3] = 0
        weight = problem.weight.clone()
        weight[:, 3] = 100.0
        repaired = repaired_by(self.repair, problem_of(weight, problem.tokens))
        assert not repaired.mask[:, 3].any()

    def test_blocks_and_damping_must_make_sense(self):
        with pytest.raises(ValueError, match="block_size"):
            SparseGPT(block_size=0)
        with pytest.raises(ValueError, match="damping"):
            SparseGPT(damping=-1.0)
