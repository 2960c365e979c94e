import torch
from contracts import GranularityContract, target

from ditprune.granularity import Row


class TestRow(GranularityContract):
    granularity = Row()

    def test_a_quiet_row_keeps_its_share_unlike_in_layer(self):
        score = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        kept = self.keep({target(): score})[target()]
        assert kept.tolist() == [[False, True], [False, True]]

    def test_no_row_gives_over_one_weight_more_than_another(self):
        score = torch.rand(5, 9, generator=torch.Generator().manual_seed(0))
        pruned = (~self.keep({target(): score}, 0.3)[target()]).sum(1)
        assert int(pruned.sum()) == round(0.3 * 45)
        assert int(pruned.max() - pruned.min()) == 1

    def test_floor_takes_equally_many_of_every_row_as_wandas_code_does(self):
        score = torch.rand(5, 9, generator=torch.Generator().manual_seed(0))
        pruned = (~Row("floor").keep({target(): score}, {target(): 13})[target()]).sum(1)
        assert pruned.tolist() == [2] * 5  # int(9 * 0.3), and not 13 / 5
        assert Row("floor").attainable(target(), (5, 9), 13) == 10
