"""What a pruned model predicts wrongly in single denoising steps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ditprune.calibration import evaluating, single_samples
from ditprune.families import Batch, Family

HELD_OUT_SEED = 2**31 - 1
"""Of the samples by which predictions are judged, and which no method is given."""


class LevelError(NamedTuple):
    """What samples of like noise are predicted wrongly by."""

    low: float
    """Of the levels of noise: 0 is the image, 1 is noise alone."""
    high: float
    num_samples: int
    error: float
    """|f_pruned - f|^2 / |f|^2, the mean over the samples."""


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

    def errors_by_level(self, model: nn.Module, num_bins: int) -> list[LevelError]:
        """Return the mean error of the samples in each part of the noise schedule that has some."""
        errors = self.errors(model)
        levels = torch.cat([sample.noise_level for sample in self.samples]).double().cpu()
        bins = (levels * num_bins).long().clamp(max=num_bins - 1)
        return [
            LevelError(i / num_bins, (i + 1) / num_bins, len(mine), mine.mean().item())
            for i in range(num_bins)
            if len(mine := errors[bins == i])
        ]


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
