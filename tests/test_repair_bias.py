import torch
from contracts import RepairContract, masked_only, repair_problem, repaired_by

from ditprune.repair import BiasCorrection
from ditprune.repair.base import relative_error


class TestBiasCorrection(RepairContract):
    repair = BiasCorrection()

    def test_only_the_bias_changes_and_by_what_the_outputs_lost_on_average(self):
        problem = repair_problem()
        repaired = repaired_by(self.repair, problem)
        masked = problem.weight * problem.mask
        lost = problem.tokens @ problem.weight.T - problem.tokens @ masked.T
        assert torch.equal(repaired.weight, masked)
        assert torch.equal(repaired.mask, problem.mask)
        assert torch.allclose(repaired.bias_shift, lost.mean(0), atol=1e-5)

    def test_it_takes_from_the_error_exactly_the_squared_means(self):
        problem = repair_problem()
        outputs = problem.tokens @ problem.weight.T
        shift = repaired_by(self.repair, problem).bias_shift
        before = relative_error(problem.weight, masked_only(problem), problem.stats)
        after = relative_error(problem.weight, repaired_by(self.repair, problem), problem.stats)
        size = outputs.square().sum(1).mean()
        assert abs(before - after - (shift.square().sum() / size).item()) < 1e-5

    def test_it_needs_no_gram_matrix(self):
        problem = repair_problem()
        problem.stats.gram = None
        assert repaired_by(self.repair, problem).bias_shift.any()
