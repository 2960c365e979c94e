"""What errors of one layer do to the images, measured by pruning it alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.activations import ActivationStats, Stats, demand_finite, demand_reached, recording
from ditprune.calibration import Observation, Weights
from ditprune.distributed import share_of_rank, sum_over_ranks
from ditprune.granularity.layer import layer_pools
from ditprune.importance import Importance, ImportanceMeasure
from ditprune.layers import restoring
from ditprune.repair.base import quadratic
from ditprune.saliency import Energy
from ditprune.targets import PruneTarget
from ditprune.trajectory import Trajectories


@dataclass(frozen=True)
class OneLayerSensitivity(ImportanceMeasure):
    """G = s I, where s is how far the images move for a unit of the layer's own error.

    One layer after another is pruned alone, and all trajectories are sampled again: s is the
    squared distance of an image from the dense model's, over the mean squared error of the
    layer's outputs for a token along the dense trajectories. So tr G D H D^T is what this change
    D of the weights did. The image is the one in the middle, by how far it moved: a few that go
    elsewhere at a fork would decide a mean alone, and other noise would find other layers. It
    takes no gradients, samples once for each layer and once more, and holds the Gram matrices of
    all layers.
    """

    num_trajectories: int = 32
    num_steps: int = 10
    sparsity: float = 0.5
    """What the layer that is pruned gives: of its weights, those of the least |W| RMS(X)."""

    def __post_init__(self) -> None:
        """Refuse what leaves no error, or no layer."""
        if not 0.0 < self.sparsity < 1.0:
            raise ValueError(f"sparsity must be in (0, 1), to make an error; got {self.sparsity}")

    @torch.no_grad()
    def along(self, trajectories: Trajectories, weights: Weights) -> dict[PruneTarget, Importance]:
        """Sample with every layer dense, then with each pruned; ranks share the layers."""
        dense, stats = follow_dense(trajectories, weights)
        found = dense.new_zeros(len(weights), dtype=torch.float64)
        for index, (target, weight) in share_of_rank(enumerate(weights.items())):
            pruned = self.prune(weight, stats[target])
            error = quadratic(weight.double() - pruned.double(), stats[target].second_moment())
            with restoring(trajectories.model, {target: weight}):
                weight.copy_(pruned)
                moved = (trajectories.images() - dense).double().square().flatten(1).sum(1)
            found[index] = moved.median() / error if error > 0 else 0.0
        return {
            target: sensitivity.expand(len(weight)).diag()
            for (target, weight), sensitivity in zip(
                weights.items(), sum_over_ranks(found), strict=True
            )
        }

    def prune(
        self, weight: Float[Tensor, "out in"], stats: ActivationStats
    ) -> Float[Tensor, "out in"]:
        """Return the weights without those that score least in the layer, by Wanda's score."""
        score = Energy(1.0, 1.0).score(weight, stats)
        keep = layer_pools(score, round(self.sparsity * score.numel())).keep(score)
        return weight.masked_fill(~keep, 0)


def follow_dense(
    trajectories: Trajectories, weights: Weights
) -> tuple[Float[Tensor, "trajectories ..."], Stats]:
    """Return the images of the dense model, and what flows into its layers on the way there."""
    stats = Observation(with_gram=True).empty(weights)
    with recording(trajectories.model, stats):
        images = trajectories.images()
    demand_reached(stats)
    demand_finite(stats)
    return images, stats
