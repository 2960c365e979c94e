"""FID at infinitely many generated images (Chong & Forsyth 2020, arXiv 1911.07023)."""

from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ditprune.metrics.base import FeatureMetric
from ditprune.metrics.frechet import Spread, distance

NUM_SIZES = 15


class FIDInfinity(FeatureMetric):
    """FID with the bias of few images extrapolated away, in the extractor's pool features.

    The bias goes as 1/N only where the smallest subset, a tenth of the images, has more images
    than there are features. What bias the reference's own count gives stays.
    """

    higher_is_better = False
    fewest = 20

    def __init__(self, seed: int = 0, **kwargs: Any) -> None:
        """Take the seed of the subsets."""
        super().__init__(**kwargs)
        self.seed = seed

    @property
    def protocol(self) -> str:
        """Return `fid_infinity/15sizes/` and the seed."""
        return f"fid_infinity/{NUM_SIZES}sizes/seed{self.seed}"

    def compute(self) -> dict[str, float]:
        """Return `fid_infinity`."""
        return {"fid_infinity": fid_infinity(*self.pools(), self.seed)}


def fid_infinity(
    generated: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], seed: int = 0
) -> float:
    """Return where the line through FID over 1/N meets 1/N = 0.

    As published: 15 numbers of images in equal steps from a tenth of all (5,000 of 50,000), each
    drawn anew without replacement, least squares. Unlike a distance it may be negative.

    Raises:
        ValueError: if a tenth of the generated images is fewer than two.
    """
    if len(generated) < 20:
        raise ValueError(f"FID at infinity needs 20 generated images; got {len(generated)}")
    sizes = torch.linspace(len(generated) // 10, len(generated), NUM_SIZES).long()
    # Subsets are drawn on the CPU, where they are the same for every device.
    generator = torch.Generator("cpu").manual_seed(seed)
    distances, other = [], Spread(reference)
    for size in sizes.tolist():
        chosen = torch.randperm(len(generated), generator=generator, device="cpu")[:size]
        own = Spread(generated[chosen.to(generated.device)])
        distances.append(distance(own, other))
    return intercept(1 / sizes.double(), torch.stack(distances).cpu())


def intercept(x: Float64[Tensor, " n"], y: Float64[Tensor, " n"]) -> float:
    """Return the value at zero of the line that fits best."""
    deviation = x - x.mean()
    slope = (deviation @ y) / deviation.square().sum()
    return (y.mean() - slope * x.mean()).item()
