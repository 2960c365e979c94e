"""What a pruned model predicts wrongly in single denoising steps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ditprune.calibration import evaluating, single_samples
from ditprune.families import Batch, Family


@dataclass(frozen=True)
class Judge:
    """Samples, and what the dense model predicts for each of them."""

    family: Family
    samples: Sequence[Batch]
    dense: Sequence[Float[Tensor, "branches 1 ..."]]

    @classmethod
    def of(
        cls, model: nn.Module, batches: Iterable[Batch], family: Family, like: Tensor
    ) -> "Judge":
        """Ask the dense model; `like` is a weight of it."""
        samples = [sample.like(like) for sample in single_samples(batches)]
        return cls(family, samples, predictions(model, samples, family))

    def errors(self, model: nn.Module) -> Float64[Tensor, " samples"]:
        """Return |f_pruned - f|^2 / |f|^2 of every sample, over all its guidance branches."""
        pairs = zip(predictions(model, self.samples, self.family), self.dense, strict=True)
        return torch.stack([relative(pruned.double(), dense.double()) for pruned, dense in pairs])


@torch.no_grad()
def predictions(model: nn.Module, samples: Sequence[Batch], family: Family) -> list[Tensor]:
    """Return what the model predicts for each sample alone."""
    with evaluating(model):
        return [family.predict(model, sample) for sample in samples]


def relative(
    prediction: Float64[Tensor, "..."], dense: Float64[Tensor, "..."]
) -> Float64[Tensor, ""]:
    """Return |f_pruned - f|^2 / |f|^2, on the CPU."""
    return ((prediction - dense).square().sum() / dense.square().sum()).cpu()
