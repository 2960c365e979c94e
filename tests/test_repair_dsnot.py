import numpy as np
import pytest
import torch
from contracts import RepairContract, problem_of, repair_problem, repaired_by

from ditprune.activations import ActivationStats
from ditprune.granularity.base import Pools, keep_top
from ditprune.repair import DSnoT


def by_loops(problem, group: int, threshold: float = 0.1, max_cycles: int = 50) -> np.ndarray:
    """Row after row, cycle after cycle, weight after weight."""
    x, weight = problem.tokens.double().numpy(), problem.weight.double().numpy()
    mean, variance, rms = x.mean(0), x.var(0), np.sqrt((x**2).mean(0))
    masks = problem.mask.numpy().copy()
    for mask, row in zip(masks, weight, strict=True):
        share = row * mean
        for _ in range(max_cycles):
            lost = share[~mask].sum()
            if abs(lost) < threshold:
                break
            towards = np.sign(lost) * share
            goers = [j for j in range(len(row)) if mask[j] and towards[j] < 0]
            comers = [
                j
                for j in range(len(row))
                if not mask[j] and towards[j] > 0 and any(k // group == j // group for k in goers)
            ]
            if not comers:
                break
            comer = max(comers, key=lambda j: towards[j] / variance[j])
            goers = [k for k in goers if k // group == comer // group]
            goer = min(goers, key=lambda k: abs(row[k]) * rms[k])
            if abs(lost - share[comer] + share[goer]) >= abs(lost):
                break
            mask[comer], mask[goer] = True, False
    return masks


def mean_error(problem, mask) -> torch.Tensor:
    return (problem.tokens.mean(0) @ (problem.weight * ~mask).T).abs()


class TestDSnoT(RepairContract):
    repair = DSnoT()

    @pytest.mark.parametrize("kind", ["layer", "row", "2:4"])
    @pytest.mark.parametrize("max_cycles", [1, 2, 50])
    def test_it_agrees_with_its_rule_weight_by_weight(self, kind, max_cycles):
        problem = repair_problem(kind)
        expected = by_loops(problem, 4 if kind == "2:4" else 32, max_cycles=max_cycles)
        found = repaired_by(DSnoT(max_cycles=max_cycles), problem).mask
        assert np.array_equal(found.numpy(), expected)
        assert not torch.equal(found, problem.mask)

    def test_the_means_come_back(self):
        problem = repair_problem(sparsity=0.7)
        before = mean_error(problem, problem.mask)
        after = mean_error(problem, repaired_by(self.repair, problem).mask)
        assert (after <= before + 1e-6).all()
        assert after.sum() < before.sum() / 3

    @pytest.mark.parametrize("kind", ["layer", "row", "2:4"])
    def test_every_row_keeps_as_many_and_the_weights_that_stay_are_the_dense_ones(self, kind):
        problem = repair_problem(kind)
        repaired = repaired_by(self.repair, problem)
        assert torch.equal(repaired.mask.sum(1), problem.mask.sum(1))
        assert torch.equal(repaired.weight, problem.weight * repaired.mask)

    def test_a_row_below_the_threshold_stays_as_it_is(self):
        problem = repair_problem()
        threshold = mean_error(problem, problem.mask).median().item()
        mask = repaired_by(DSnoT(threshold=threshold), problem).mask
        quiet = mean_error(problem, problem.mask) < threshold
        assert torch.equal(mask[quiet], problem.mask[quiet])
        assert not torch.equal(mask, problem.mask)

    def test_pools_that_cut_through_rows_get_their_numbers_back(self):
        problem = repair_problem()

        class Columns(Pools):
            name = "column"

            def keep(self, score):
                return keep_top(score.T.contiguous(), torch.full((32,), 6)).T.contiguous()

        problem = problem._replace(mask=Columns().keep(problem.weight.abs()), pools=Columns())
        repaired = repaired_by(self.repair, problem)
        assert torch.equal(repaired.mask.sum(0), torch.full((32,), 6))
        assert (problem.mask != repaired.mask).float().mean() < 0.5

    def test_the_variance_decides_who_comes_back(self):
        """Two pruned weights give the same mean; the one of the steadier channel comes."""
        stats = ActivationStats(4)
        stats.add(torch.tensor([[1.0, 3.0, 1.0, 1.0], [1.0, -1.0, 1.0, 1.0]]))
        weight, mask = torch.tensor([[1.0, 1.0, 2.0, -0.1]]), torch.tensor([[0, 0, 1, 1]]).bool()
        problem = problem_of(weight, torch.ones(2, 4))._replace(stats=stats, mask=mask)
        repaired = repaired_by(DSnoT(max_cycles=1), problem)
        assert repaired.mask.tolist() == [[True, False, True, False]]

    def test_it_needs_no_gram_matrix(self):
        problem = repair_problem()
        problem.stats.gram = None
        assert not torch.equal(repaired_by(self.repair, problem).mask, problem.mask)
