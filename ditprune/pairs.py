"""Image pairs of both models, from the same noise: the first, and those that changed most."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from ditprune.chunks import read_picture
from ditprune.samples import Samples
from ditprune.sampling_plan import SamplingPlan


class Pair(NamedTuple):
    """One image of each model."""

    asked: str
    """The prompt, or which condition."""
    origin: str
    """Which noise, and how much the images differ."""
    dense: UInt8[Tensor, "c h w"]
    pruned: UInt8[Tensor, "c h w"]


@dataclass(frozen=True)
class PairedSamples:
    """The samples of both models, seed by seed, of one plan."""

    plan: SamplingPlan
    dense: Mapping[int, Samples]
    pruned: Mapping[int, Samples]

    @property
    def measure(self) -> str:
        """The error by which pairs are ranked: LPIPS if it was measured, else MSE."""
        keys = self.pruned[self.plan.seeds[0]].measured
        return next((key.by for key in keys if key.by.startswith("lpips/")), "mse")

    def errors(self) -> Float64[Tensor, "s n"]:
        """Return the error of each pair, a row for each seed."""
        name = self.measure
        return torch.stack([self.pruned[seed].values()[name].double() for seed in self.plan.seeds])

    def first(self, count: int) -> list[Pair]:
        """Return the first pairs of the first seed."""
        return self._pairs(range(min(count, len(self.plan.conditions))))

    def worst(self, count: int) -> list[Pair]:
        """Return the pairs of the largest errors over all seeds, the worst one first."""
        order = self.errors().flatten().argsort(descending=True, stable=True)
        return self._pairs(order[:count].tolist())

    def _pairs(self, places: Iterable[int]) -> list[Pair]:
        errors = self.errors()
        rows = (divmod(place, errors.shape[1]) for place in places)
        return [self._pair(row, i, errors[row, i].item()) for row, i in rows]

    def _pair(self, row: int, sample_id: int, error: float) -> Pair:
        plan, seed = self.plan, self.plan.seeds[row]
        condition = f"condition {plan.conditions[sample_id]}"
        name = self.measure.partition("/")[0]
        return Pair(
            asked=plan.prompts[sample_id] if plan.prompts else condition,
            origin=f"seed {seed}, sample {sample_id}, {name} {error:.3g}",
            dense=image_of(self.dense[seed], sample_id),
            pruned=image_of(self.pruned[seed], sample_id),
        )


def image_of(samples: Samples, sample_id: int) -> UInt8[Tensor, "c h w"]:
    """Return one image, read from its own file."""
    chunk = next(chunk for chunk in samples.chunks if sample_id in chunk.ids)
    return read_picture(chunk.images(samples.home)[chunk.ids.index(sample_id)])
