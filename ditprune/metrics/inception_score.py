"""The inception score (Salimans et al. 2016, arXiv 1606.03498, Sec. 4)."""

import math
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ditprune.metrics.base import FeatureMetric


class InceptionScore(FeatureMetric):
    """How sure the classifier is of each image and how evenly it uses its classes.

    By torch-fidelity's protocol: ten splits of shuffled images. `ADMInceptionScore` is the other.
    The reference is not looked at and may be empty. Images are shuffled by position before they
    are split: for equal numbers on any number of ranks, bring them into one order first.
    """

    higher_is_better = True

    def __init__(self, num_splits: int = 10, seed: int = 0, **kwargs: Any) -> None:
        """Choose the splits whose scores are averaged, and the seed of the shuffle."""
        super().__init__(**kwargs)
        self.num_splits = self.fewest = num_splits
        self.seed = seed

    @property
    def protocol(self) -> str:
        """Return `inception_score/`, the splits and the seed."""
        return f"inception_score/{self.num_splits}splits/seed{self.seed}"

    def compute(self) -> dict[str, float]:
        """Return `inception_score`, the mean over the splits."""
        mean, _ = inception_score(self.logits(), self.num_splits, self.seed)
        return {"inception_score": mean}


def inception_score(
    logits: Float[Tensor, "n c"], num_splits: int = 10, seed: int = 0
) -> tuple[float, float]:
    """Return the mean and the population deviation of exp E KL(p(y|x) || p(y)) over the splits.

    Shuffled by a generator of its own and split where torch-fidelity splits.

    Raises:
        ValueError: if there are fewer images than splits.
    """
    if not 1 <= num_splits <= len(logits):
        raise ValueError(
            f"the inception score cannot make {num_splits} splits of {len(logits)} images; give "
            "more images, or a num_splits from 1 to their number"
        )
    # The shuffle is drawn on the CPU, where it is the same for every device.
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(len(logits), generator=generator, device="cpu").to(logits.device)
    parts = split_evenly(order, num_splits)
    scores = torch.stack([score_split(logits[part]) for part in parts])
    return scores.mean().item(), scores.std(correction=0).item()


def split_evenly(rows: Int64[Tensor, " n"], num_splits: int) -> list[Int64[Tensor, " _"]]:
    """Cut rows at floor(i n / num_splits)."""
    bounds = [i * len(rows) // num_splits for i in range(num_splits + 1)]
    return [rows[start:stop] for start, stop in pairwise(bounds)]


def score_split(logits: Float[Tensor, "n c"]) -> Float64[Tensor, ""]:
    """Return exp of the mean KL divergence of the images' classes from their average."""
    log_p = logits.double().log_softmax(1)
    # The average is taken in the log domain: a class that no image may be has log 0 there.
    log_average = log_p.logsumexp(0) - math.log(len(log_p))
    return (log_p.exp() * (log_p - log_average)).sum(1).mean().exp()
