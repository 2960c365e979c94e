"""The inception score as ADM's evaluator takes it, and with it the tables of DiT and SiT."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.metrics.base import FeatureMetric
from ditprune.metrics.inception_score import score_split

SPLIT_SIZE = 5000


class ADMInceptionScore(FeatureMetric):
    """The mean score of splits of 5000 images each, in the order in which they come.

    Nothing is shuffled: images sorted by class score too low. The logits are all 1008 of
    `InceptionV3`, without bias, as in `InceptionScore`. The reference may be empty.
    """

    higher_is_better = True

    @property
    def protocol(self) -> str:
        """Return `inception_score_adm/splits_of_5000`."""
        return f"inception_score_adm/splits_of_{SPLIT_SIZE}"

    def compute(self) -> dict[str, float]:
        """Return `inception_score_adm`."""
        return {"inception_score_adm": adm_inception_score(self.logits())}


def adm_inception_score(logits: Float[Tensor, "n c"], split_size: int = SPLIT_SIZE) -> float:
    """Return the mean of exp E KL(p(y|x) || p(y)) over contiguous splits.

    A short last split counts as much as a full one, and warns of it: so it is in
    https://github.com/openai/guided-diffusion, evaluations/evaluator.py, `compute_inception_score`.
    """
    short = len(logits) % split_size
    if short and len(logits) > split_size:
        warnings.warn(
            f"the last {short} images count as much in ADM's inception score as each {split_size} "
            f"before them; draw a multiple of {split_size}",
            stacklevel=2,
        )
    splits = logits.split(split_size)
    return torch.stack([score_split(part) for part in splits]).mean().item()
