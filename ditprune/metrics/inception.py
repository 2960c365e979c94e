"""The Inception network of the published numbers, as torch-fidelity ports it."""

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)

from ditprune.metrics.features import FeatureExtractor, Features, building, measuring, weights_hash
from ditprune.metrics.pretrained import in_colour

NAME = "inception-v3-compat"
FEATURES = ["2048", "logits_unbiased"]
NUM_SPATIAL_CHANNELS = 7
WHERE_FROM = (
    f"Download {URL_INCEPTION_V3} and give InceptionV3 its local path as weights=; without "
    "weights= it is downloaded from there."
)


class InceptionV3(FeatureExtractor):
    """TensorFlow's 2015 Inception: 2048 features, 1008 logits without bias, 2023 spatial features.

    Resized as TensorFlow 1 did, so that the numbers compare with ADM's evaluator and with
    torch-fidelity, whose port and weights these are (https://github.com/toshas/torch-fidelity).
    The network is built on first use.
    """

    def __init__(self, weights: str | None = None) -> None:
        """Take torch-fidelity's weights file from a local path, or None to download it once."""
        if weights is not None and not Path(weights).is_file():
            raise ValueError(f"there is no file {weights}, given as weights=. {WHERE_FROM}")
        self.weights = weights

    @cached_property
    def network(self) -> FeatureExtractorInceptionV3:
        """Return the network; the first call loads it."""
        return load_inception(self.weights)

    @cached_property
    def name(self) -> str:
        """Return `inception-v3-compat/` and the hash of the weights."""
        return f"{NAME}/{weights_hash(self.network)}"

    def extract(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        """Return the features of images, in float32 on the CPU; grey ones are seen as colour."""
        device = self.network.fc.weight.device
        with measuring(device), spatial_features(self.network) as spatial:
            pool, logits = self.network(in_colour(images).to(device))
        return Features(pool.cpu(), logits.cpu(), spatial.pop().cpu())

    def to(self, device: torch.device | str) -> "InceptionV3":
        """Move the network, and return the extractor."""
        self.network.to(device)
        return self


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
    try:
        with building():
            source = plain_copy(read_weights(weights))
            return FeatureExtractorInceptionV3(NAME, FEATURES, source)
    except pickle.UnpicklingError:
        # torch's message is left out: it advises to open the file without the check.
        raise ValueError(
            f"refused to load Inception's weights from {origin(weights)}: the file holds other "
            f"things than tensors and could run code. {WHERE_FROM}"
        ) from None
    except (OSError, EOFError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"cannot load Inception's weights from {origin(weights)}: {error}. {WHERE_FROM}"
        ) from error


def origin(weights: str | None) -> str:
    """Name the file that is read, and for a download where it is kept."""
    return weights or f"{URL_INCEPTION_V3} (kept in {torch.hub.get_dir()}/checkpoints)"


def read_weights(weights: str | None) -> dict[str, Tensor]:
    """Read tensors from a local path or torch-fidelity's address; never execute a pickle."""
    if weights is None:
        return torch.hub.load_state_dict_from_url(
            URL_INCEPTION_V3, map_location="cpu", check_hash=True, weights_only=True
        )
    state: dict[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    return state


def plain_copy(state: dict[str, Tensor]) -> io.BytesIO:
    """Return a file in memory that holds the tensors read.

    torch-fidelity unpickles whatever file it is given; this one was written here.
    """
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file
