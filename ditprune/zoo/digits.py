"""Handwritten digits: scikit-learn's bundled 8x8 images and a small classifier that reads them."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 10
HELD_OUT = 0.2


class LabelledImages(NamedTuple):
    """Images in [-1, 1] and the class of each."""

    images: Float[Tensor, "n 1 8 8"]
    labels: Int[Tensor, " n"]


class DigitsSplit(NamedTuple):
    """What is trained on, and what is not: the same 1,437 and 360 images for everyone."""

    train: LabelledImages
    held_out: LabelledImages


def load_split() -> DigitsSplit:
    """Return the 1,797 digits of scikit-learn (UCI optdigits), split class by class."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 8 - 1
    train, held_out = train_test_split(
        torch.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=0
    )
    labels = torch.from_numpy(labels)
    return DigitsSplit(
        LabelledImages(images[train], labels[train]),
        LabelledImages(images[held_out], labels[held_out]),
    )


class DigitClassifier(nn.Module):
    """A three-layer CNN; its 64 penultimate features serve the evaluation metrics."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.penultimate = nn.Linear(64 * 4 * 4, self.num_features)
        self.head = nn.Linear(self.num_features, NUM_CLASSES)

    def features(self, images: Float[Tensor, "b 1 8 8"]) -> Float[Tensor, "b 64"]:
        """Return the penultimate activations of images in [-1, 1]."""
        x = F.gelu(self.conv1(images))
        x = F.max_pool2d(F.gelu(self.conv2(x)), 2)
        return F.gelu(self.penultimate(x.flatten(1)))

    def forward(self, images: Float[Tensor, "b 1 8 8"]) -> Float[Tensor, "b 10"]:
        """Return the class logits of images in [-1, 1]."""
        return self.head(F.dropout(self.features(images), 0.3, self.training))
