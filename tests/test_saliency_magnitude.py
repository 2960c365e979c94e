import torch
from contracts import SaliencyContract, some_stats

from ditprune.saliency import Magnitude


class TestMagnitude(SaliencyContract):
    saliency = Magnitude()

    def test_what_flows_in_does_not_count_unlike_in_energy(self):
        loud = some_stats()
        loud.sum_of_squares[:, 0] *= 1e6
        weight = torch.tensor([[1.0, -2.0, 3.0, 0.0, 0.5, 0.25]])
        assert self.saliency.score(weight, loud).tolist() == [[1.0, 2.0, 3.0, 0.0, 0.5, 0.25]]
