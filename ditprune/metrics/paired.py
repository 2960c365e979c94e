"""What pruning changed in each image: errors beside the unpruned model's image of one seed."""

import abc
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from scipy.ndimage import gaussian_filter
from torch import Tensor

WINDOW_RADIUS = 5
"""So many pixels SSIM's window reaches over an edge, where the image is mirrored."""

Paired = TypeVar("Paired", bound="PairedMetric")


class PairedMetric(abc.ABC):
    """Compares every image with its partner: the dense model's image from the same noise.

    Not a module on purpose, as `Frozen` is none.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Return the protocol, and a hash of the weights if there are any."""

    @property
    def protocol(self) -> str:
        """Return the definition: the name, where that is one."""
        return self.name

    @abc.abstractmethod
    def compare(
        self, images: UInt8[Tensor, "n c h w"], others: UInt8[Tensor, "_ _ _ _"]
    ) -> Float64[Tensor, " n"]:
        """Return a number for each image and the other of the same place, on the CPU.

        Raises:
            ValueError: if the shapes differ, or there are no images, or they are too small.
        """

    def to(self: Paired, device: torch.device | str) -> Paired:
        """Move the network, if there is one, and return the metric."""
        return self


class MeanSquaredError(PairedMetric):
    """The mean square of the differences, on values in [0, 1]."""

    name = "mse"
    protocol = "mse/range1"

    def compare(
        self, images: UInt8[Tensor, "n c h w"], others: UInt8[Tensor, "_ _ _ _"]
    ) -> Float64[Tensor, " n"]:
        """Return the error of each image."""
        demand_pairs(images, others)
        return (images.double() / 255 - others.double() / 255).square().mean((1, 2, 3)).cpu()


class PeakSignalToNoise(PairedMetric):
    """PSNR of each image in dB, of a peak of 1; infinite for equal images."""

    name = "psnr"
    protocol = "psnr/peak1"

    def compare(
        self, images: UInt8[Tensor, "n c h w"], others: UInt8[Tensor, "_ _ _ _"]
    ) -> Float64[Tensor, " n"]:
        """Return the ratio of each image."""
        return -10 * MeanSquaredError().compare(images, others).log10()


class StructuralSimilarity(PairedMetric):
    """SSIM (Wang et al. 2004, IEEE Trans. Image Process. 13(4)), on values in [0, 1].

    Sigma 1.5 in an 11x11 window, with the edges mirrored.
    """

    name = "ssim"
    protocol = "ssim/gauss11x11/sigma1.5/mirrored"

    def compare(
        self, images: UInt8[Tensor, "n c h w"], others: UInt8[Tensor, "_ _ _ _"]
    ) -> Float64[Tensor, " n"]:
        """Return the similarity of each image to its partner."""
        demand_pairs(images, others, WINDOW_RADIUS + 1)
        pairs = zip(images.cpu().numpy(), others.cpu().numpy(), strict=True)
        return torch.tensor([similarity(x / 255, y / 255) for x, y in pairs], dtype=torch.float64)


def similarity(x: Float64[np.ndarray, "c h w"], y: Float64[np.ndarray, "c h w"]) -> float:
    """Return the mean of SSIM over all pixels and channels (Wang et al. 2004, Eq. 13).

    One axis after the other, where torchmetrics multiplies every pixel's whole window out: of one
    image of 1024 x 1024 in float64 that takes 5 GB.
    """
    smooth = partial(gaussian_filter, sigma=1.5, radius=WINDOW_RADIUS, mode="mirror", axes=(1, 2))
    mean_x, mean_y = smooth(x), smooth(y)
    spread = smooth(x * x) - mean_x**2 + smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return float((luminance * (2 * covariance + 0.03**2) / (spread + 0.03**2)).mean())


ALWAYS: tuple[PairedMetric, ...] = (MeanSquaredError(), PeakSignalToNoise(), StructuralSimilarity())
"""Those that need no network."""


def paired_errors(
    images: UInt8[Tensor, "n c h w"], reference: UInt8[Tensor, "_ _ _ _"]
) -> dict[str, Float64[Tensor, " n"]]:
    """Return `mse`, `psnr` and `ssim` of each image.

    Raises:
        ValueError: if the shapes differ, or there are no images, or none that SSIM's window fits.
    """
    return {metric.name: metric.compare(images, reference) for metric in ALWAYS}


def demand_pairs(
    images: UInt8[Tensor, "n c h w"], others: UInt8[Tensor, "_ _ _ _"], smallest_side: int = 1
) -> None:
    """Raise a ValueError unless there are images, each has its partner and all are large enough."""
    if images.shape != others.shape:
        raise ValueError(
            f"paired errors compare image with image: {tuple(images.shape)} and "
            f"{tuple(others.shape)} differ. Sample both models at the same seeds and size."
        )
    if len(images) == 0:
        raise ValueError("there are no images to compare; give at least one pair")
    if min(images.shape[2:]) < smallest_side:
        raise ValueError(
            f"this metric needs images of at least {smallest_side}x{smallest_side} pixels; got "
            f"{images.shape[2]}x{images.shape[3]}. Compare at the size that the model draws, or "
            "leave the metric out."
        )
