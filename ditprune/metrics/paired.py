"""What pruning changed in each image: errors beside the unpruned model's image of one seed."""

import abc
from typing import TypeVar

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

SMALLEST_SIDE = 6
"""SSIM's window reaches 5 pixels over the edge, and the image is mirrored there."""

Paired = TypeVar("Paired", bound="PairedMetric")


class PairedMetric(abc.ABC):
    """Compares every image with its partner: the dense model's image from the same noise.

    Not a module on purpose, as `Frozen` is none.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Return the protocol, and a hash of the weights if there are any."""

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

    def compare(
        self, images: UInt8[Tensor, "n c h w"], others: UInt8[Tensor, "_ _ _ _"]
    ) -> Float64[Tensor, " n"]:
        """Return the error of each image."""
        demand_pairs(images, others)
        return (images.double() / 255 - others.double() / 255).square().mean((1, 2, 3)).cpu()


class PeakSignalToNoise(PairedMetric):
    """PSNR of each image in dB, of a peak of 1; infinite for equal images."""

    name = "psnr"

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

    def compare(
        self, images: UInt8[Tensor, "n c h w"], others: UInt8[Tensor, "_ _ _ _"]
    ) -> Float64[Tensor, " n"]:
        """Return the similarity of each image to its partner."""
        demand_pairs(images, others, SMALLEST_SIDE)
        x, y = images.double() / 255, others.double() / 255
        # The range is given: torchmetrics would take the batch's, and an image depend on its batch.
        ssim = structural_similarity_index_measure(x, y, reduction="none", data_range=1.0)
        assert isinstance(ssim, Tensor)  # the maps of all pixels would make it a tuple
        return ssim.cpu()


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
