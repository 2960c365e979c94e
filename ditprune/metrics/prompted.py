"""Metrics of single images: how well each fits its own prompt."""

import abc
from collections.abc import Sequence

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor


class PromptMetric(abc.ABC):
    """Scores every image with its own prompt, and not with a set of others.

    Not a module on purpose, as `FeatureExtractor` is none: a LightningModule that holds one would
    convert its network, save it and count its weights.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Return the protocol, its unit and a hash of the weights: equal names, equal numbers."""

    @abc.abstractmethod
    def score(
        self, images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]
    ) -> Float64[Tensor, " n"]:
        """Return the score of each image with the prompt of the same place, on the CPU.

        Raises:
            ValueError: if there are not as many prompts as images.
        """

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> "PromptMetric":
        """Move the network, and return the metric."""


def demand_prompts(images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]) -> None:
    """Raise a ValueError unless there are images, and each has its prompt."""
    if len(images) != len(prompts) or not len(prompts):
        raise ValueError(
            "scores of prompts need a prompt for each image, and an image; got "
            f"{len(images)} images and {len(prompts)} prompts"
        )
