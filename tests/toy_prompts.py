"""Prompts for the toy project, and a metric of images and prompts that needs no network."""

import torch
from lightning_project import Data

from ditprune.metrics.prompted import PromptMetric


class Lengths(PromptMetric):
    """The grey level of an image, over the number of letters of its prompt."""

    name = "lengths/v1"

    def __init__(self) -> None:
        self.num_scored = 0

    def score(self, images, prompts):
        assert len(images) == len(prompts)
        self.num_scored += len(images)
        letters = torch.tensor([len(prompt) for prompt in prompts]).double()
        return images.double().mean((1, 2, 3)) / letters

    def to(self, device):
        return self


class PromptedData(Data):
    """Every second prompt is like the one before it."""

    def evaluation_prompts(self, num_samples):
        return ["a" * (i // 2 + 1) for i in range(num_samples)]
