import torch
from contracts import GranularityContract, target

from ditprune.granularity import Layer


class TestLayer(GranularityContract):
    granularity = Layer()

    def test_a_quiet_row_may_lose_everything_unlike_in_row(self):
        score = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        kept = self.keep({target(): score})[target()]
        assert kept.tolist() == [[False, False], [True, True]]

    def test_a_quiet_layer_keeps_its_share(self):
        scores = {target("loud"): torch.rand(4, 4) + 9, target("quiet"): torch.rand(4, 4)}
        kept = self.keep(scores)
        assert int(kept[target("quiet")].sum()) == 8
