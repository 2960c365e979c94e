"""The Inception network of the published numbers, as torch-fidelity ports it."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)
from torchvision.transforms.functional import InterpolationMode, resize

from ditprune.metrics.features import FeatureExtractor, Features, measuring, weights_hash
from ditprune.metrics.frozen import Frozen
from ditprune.metrics.pickled import loading, origin, read_tensors
from ditprune.metrics.pretrained import in_colour

NAME = "inception-v3-compat"
FEATURES = ["2048", "logits_unbiased"]
NUM_SPATIAL_CHANNELS = 7
WHERE_FROM = (
    f"Download {URL_INCEPTION_V3} and give InceptionV3 its local path as weights=; without "
    "weights= it is downloaded from there."
)


class InceptionV3(Frozen, FeatureExtractor):
    """TensorFlow's 2015 Inception: 2048 features, 1008 logits without bias, 2023 spatial features.

    By torch-fidelity's port and weights (https://github.com/toshas/torch-fidelity). The network is
    built on first use.
    """

    def __init__(
        self, weights: str | None = None, resize: Literal["tensorflow", "clean"] = "tensorflow"
    ) -> None:
        """Choose a protocol.

        Args:
            weights: torch-fidelity's file, by a local path; None downloads it once.
            resize: `tensorflow`, version 1, as ADM's evaluator and torch-fidelity do; or `clean`,
                which smooths as it shrinks (Parmar et al. 2022, arXiv 2104.11222), as published
                numbers on MJHQ-30K do. Their numbers do not compare.
        """
        if weights is not None and not Path(weights).is_file():
            raise ValueError(f"there is no file {weights}, given as weights=. {WHERE_FROM}")
        self.weights = weights
        self.resize = resize

    def load(self) -> FeatureExtractorInceptionV3:
        """Return torch-fidelity's network."""
        return load_inception(self.weights)

    @cached_property
    def name(self) -> str:
        """Return `inception-v3-compat/`, `clean/` if it resizes so, and the hash of the weights."""
        clean = "clean/" if self.resize == "clean" else ""
        return f"{NAME}/{clean}{weights_hash(self.network)}"

    def extract(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        """Return the features of images, in float32 on the CPU; grey ones are seen as colour."""
        colours = in_colour(images).to(self.device)
        with (
            measuring(self.device),
            spatial_features(self.network) as spatial,
            seeing(self.network, clean(colours)) if self.resize == "clean" else nullcontext(),
        ):
            pool, logits = self.network(colours)
        return Features(pool.cpu(), logits.cpu(), spatial.pop().cpu())


def clean(images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 299 299"]:
    """Return images as the network sees them in clean-fid, by Pillow's bicubic filter."""
    side = FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE
    # In double precision: torch's weights of the filter are rounded, Pillow's are not.
    smooth = resize(images.double(), [side, side], InterpolationMode.BICUBIC, antialias=True)
    pixels: Tensor = smooth.clamp(0, 255)
    return ((pixels - 128) / 128).float()


@contextmanager
def seeing(
    network: FeatureExtractorInceptionV3, pixels: Float[Tensor, "n 3 299 299"]
) -> Iterator[None]:
    """Show the network's first layer these pixels, in place of what its own resizing makes."""
    handle = network.Conv2d_1a_3x3.register_forward_pre_hook(lambda *_: (pixels,))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def spatial_features(
    network: FeatureExtractorInceptionV3,
) -> Iterator[list[Float[Tensor, "n 2023"]]]:
    """Collect the spatial features of the images that pass meanwhile.

    They are the first 7 channels of what TensorFlow calls mixed_6/conv, on 17x17 places, in its
    order: channels last (https://github.com/openai/guided-diffusion, evaluations/evaluator.py).
    """
    collected: list[Tensor] = []

    def collect(_: nn.Module, __: object, channels: Tensor) -> None:
        first = channels[:, :NUM_SPATIAL_CHANNELS]
        collected.append(first.permute(0, 2, 3, 1).flatten(1))

    handle = network.Mixed_6d.branch1x1.register_forward_hook(collect)
    try:
        yield collected
    finally:
        handle.remove()


def load_inception(weights: str | None) -> FeatureExtractorInceptionV3:
    """Return torch-fidelity's network with weights from a local path or its own address.

    Raises:
        ValueError: if the weights cannot be had, or are not this network's.
    """
    with loading("Inception's weights", origin(weights, URL_INCEPTION_V3), WHERE_FROM):
        source = plain_copy(read_tensors(weights, URL_INCEPTION_V3))
        return FeatureExtractorInceptionV3(NAME, FEATURES, source)


def plain_copy(state: dict[str, Tensor]) -> io.BytesIO:
    """Return a file in memory that holds the tensors read.

    torch-fidelity unpickles whatever file it is given; this one was written here.
    """
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file
