import numpy as np
import torch
from contracts import GranularityContract, counts, target

from ditprune.granularity import Column, Row


class TestColumn(GranularityContract):
    granularity = Column()

    def test_a_quiet_input_keeps_its_share_unlike_in_row_and_layer(self):
        score = torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]])
        kept = self.keep({target(): score})[target()]
        assert kept.int().tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]

    def test_no_column_gives_over_one_weight_more_than_another(self):
        score = torch.rand(9, 5, generator=torch.Generator().manual_seed(0))
        kept = self.keep({target(): score}, 0.3)[target()]
        assert int((~kept).sum()) == round(0.3 * 45)
        assert kept.sum(0).tolist() == [7, 6, 6, 6, 6]  # the first keep one more

    def test_of_equals_the_first_rows_stay(self):
        kept = self.keep({target(): torch.ones(4, 3)})[target()]
        assert kept.sum(1).tolist() == [3, 3, 0, 0]

    def test_it_agrees_with_a_stable_sort_of_every_column(self):
        score = (torch.rand(12, 7, generator=torch.Generator().manual_seed(1)) * 4).round()
        expected = np.zeros(score.shape, dtype=bool)
        for column, scores in enumerate(score.T.numpy()):
            expected[np.argsort(-scores, kind="stable")[:6], column] = True
        assert np.array_equal(self.keep({target(): score})[target()].numpy(), expected)

    def test_the_mask_lies_in_memory_row_after_row(self):
        assert all(mask.is_contiguous() for mask in self.keep().values())

    def test_activations_decide_nothing_inside_a_column(self):
        weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
        rms = torch.rand(6, generator=torch.Generator().manual_seed(3)) * 100
        loud = {target(): weight.abs().double() * rms}
        plain = {target(): weight.abs().double()}
        wanted = counts(plain, 0.5)
        assert torch.equal(
            Column().keep(loud, wanted)[target()], Column().keep(plain, wanted)[target()]
        )
        assert not torch.equal(
            Row().keep(loud, wanted)[target()], Row().keep(plain, wanted)[target()]
        )
