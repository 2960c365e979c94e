"""What pruning changed in each image: errors beside the unpruned model's image of one seed."""

from jaxtyping import Float64, UInt8
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

SMALLEST_SIDE = 6
"""SSIM's window reaches 5 pixels over the edge, and the image is mirrored there."""


def paired_errors(
    images: UInt8[Tensor, "n c h w"], reference: UInt8[Tensor, "_ _ _ _"]
) -> dict[str, Float64[Tensor, " n"]]:
    """Return `mse`, `psnr` and `ssim` of each image, on values in [0, 1].

    PSNR is in dB and infinite for equal images. SSIM is that of Wang et al. 2004 (IEEE Trans.
    Image Process. 13(4)), sigma 1.5 in an 11x11 window, with the edges mirrored.

    Raises:
        ValueError: if the shapes differ, or there are no images, or none that SSIM's window fits.
    """
    demand_pairs(images, reference)
    x, y = images.double() / 255, reference.double() / 255
    mse = (x - y).square().mean((1, 2, 3))
    # The range is given: torchmetrics would take the batch's, and an image depend on its batch.
    ssim = structural_similarity_index_measure(x, y, reduction="none", data_range=1.0)
    assert isinstance(ssim, Tensor)  # the maps of all pixels would make it a tuple
    return {"mse": mse, "psnr": -10 * mse.log10(), "ssim": ssim}


def demand_pairs(images: UInt8[Tensor, "n c h w"], reference: UInt8[Tensor, "_ _ _ _"]) -> None:
    """Raise a ValueError unless there are images, each has its partner and SSIM's window fits."""
    if images.shape != reference.shape:
        raise ValueError(
            f"paired errors compare image with image: {tuple(images.shape)} and "
            f"{tuple(reference.shape)} differ. Sample both models at the same seeds and size."
        )
    if len(images) == 0:
        raise ValueError("there are no images to compare; give at least one pair")
    if min(images.shape[2:]) < SMALLEST_SIDE:
        raise ValueError(
            f"SSIM needs images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels; got "
            f"{images.shape[2]}x{images.shape[3]}. Compare at the size that the model draws."
        )
