"""Metrics of two sets of features: what was generated, and what it should look like."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ditprune.metrics.features import Features

BLOCK_SIZE = 4096
"""Images that are looked at at once."""


class FeatureMetric(Metric, abc.ABC):
    """A number, or a few, about a set of generated images beside a reference set.

    Features are kept as they come and every number is computed at the end, in float64 wherever it
    matters, so that it is the same however they came in batches and ranks. A rank without images
    must still call `update`, with `Features.none()`: torchmetrics cannot gather a state of unknown
    width.
    """

    fewest = 2
    """Images of each set that it takes at least."""
    full_state_update = False
    is_differentiable = False

    generated_pool: list[Tensor]
    generated_logits: list[Tensor]
    reference_pool: list[Tensor]
    reference_logits: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        """Take what torchmetrics' `Metric` takes."""
        super().__init__(**kwargs)
        for state in ("generated_pool", "generated_logits", "reference_pool", "reference_logits"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, generated: Features, reference: Features) -> None:
        """Add images to either set, or none: `Features.none()`.

        The tensors are kept, not copied, so that several metrics share one copy.

        Raises:
            ValueError: if these features and those kept are not of one extractor.
        """
        demand_same_width(generated.pool, reference.pool, *self.generated_pool[-1:])
        self.generated_pool.append(generated.pool.detach().to(self.device))
        self.generated_logits.append(generated.logits.detach().to(self.device))
        self.reference_pool.append(reference.pool.detach().to(self.device))
        self.reference_logits.append(reference.logits.detach().to(self.device))

    @property
    @abc.abstractmethod
    def protocol(self) -> str:
        """Return the definition and its settings: of equal ones, numbers compare."""

    @abc.abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the numbers by name."""

    def pools(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
        """Return the pool features of both sets, generated first.

        Raises:
            ValueError: if one of the sets is empty, or has features that are not finite.
        """
        return collect(self.generated_pool, "generated"), collect(self.reference_pool, "reference")

    def logits(self) -> Float[Tensor, "n c"]:
        """Return the logits of the generated images.

        Raises:
            ValueError: if there are none, or not finite, or the extractor knows no classes.
        """
        logits = collect(self.generated_logits, "generated")
        if not logits.shape[1]:
            raise ValueError(
                "inception scores need logits, and this extractor knows no classes; use "
                "InceptionV3 or DigitsClassifier, or leave the score out"
            )
        return logits

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> nn.Module:
        """Follow the module that holds the metric to its device, and never to its dtype.

        torchmetrics means the same, but its guard does not know `parent.to(torch.bfloat16)`,
        which is what Lightning's true half precision calls.
        """
        return super()._apply(lambda state: state.to(fn(state[:0]).device), exclude_state)


def demand_same_width(*batches: Float[Tensor, "_ _"]) -> None:
    """Raise a ValueError if some images have more features than others."""
    widths = {batch.shape[1] for batch in batches}
    if len(widths) > 1:
        raise ValueError(
            f"images with {' and '.join(map(str, sorted(widths)))} features cannot be measured "
            "together; extract both sets with one FeatureExtractor"
        )


def collect(batches: list[Tensor] | Tensor, which: str) -> Float[Tensor, "n d"]:
    """Return the batches of a set as one tensor, which those gathered from all ranks are already.

    Raises:
        ValueError: if there are no images in them, or some without finite features.
    """
    if isinstance(batches, list) and len(batches) == 1:
        images = batches[0]  # no copy of what may be large
    else:
        images = dim_zero_cat(batches) if len(batches) else torch.empty(0, 0)
    if len(images) == 0:
        raise ValueError(
            f"there are no {which} images to measure; update(generated, reference) must be given "
            "some of them before compute()"
        )
    demand_finite(images, which)
    return images


def demand_finite(features: Float[Tensor, "n d"], which: str) -> None:
    """Raise a ValueError if some images have features that are no numbers."""
    lost = sum(int((~block.isfinite()).any(1).sum()) for block in features.split(BLOCK_SIZE))
    if lost:
        raise ValueError(
            f"{lost} of {len(features)} {which} images have features that are not finite, which no "
            "metric has a number for: are the images or the extractor's weights damaged?"
        )
