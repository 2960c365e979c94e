"""Images to features: the frozen networks that the set metrics look through."""

import abc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ditprune.metrics.frozen import Frozen
from ditprune.zoo.digits import DigitClassifier
from ditprune.zoo.pretrained import ZOO

DIGITS_WEIGHTS = ZOO / "digits-classifier" / "classifier.safetensors"


class Features(NamedTuple):
    """What a network says about n images."""

    pool: Float[Tensor, "n d"]
    """The penultimate activations: for distances between sets."""
    logits: Float[Tensor, "n c"]
    """The class logits: for the inception score; of width 0 where there are no classes."""
    spatial: Float[Tensor, "n s"] | None = None
    """Activations that have not been averaged over places, for sFID; few networks have them."""

    def none(self) -> "Features":
        """Return the features of no image, as wide as these: what an idle rank contributes."""
        spatial = None if self.spatial is None else self.spatial[:0]
        return Features(self.pool[:0], self.logits[:0], spatial)

    def tensors(self) -> dict[str, Tensor]:
        """Return what there is, by name: how it is stored."""
        return {name: part for name, part in self._asdict().items() if part is not None}


class FeatureExtractor(abc.ABC):
    """A frozen network that turns images into features.

    Not a module on purpose: a LightningModule that holds one would convert it to its precision,
    write it to checkpoints and count its weights among its own.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Return the protocol and a hash of the weights: equal names, comparable numbers."""

    @abc.abstractmethod
    def extract(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        """Return the features of images, in float32 on the CPU; n may be zero."""

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> "FeatureExtractor":
        """Move the network, and return the extractor."""


class DigitsClassifier(Frozen, FeatureExtractor):
    """The zoo's classifier of handwritten digits: 64 features and 10 logits of 1x8x8 images."""

    def __init__(self, weights: str | Path = DIGITS_WEIGHTS) -> None:
        self.weights = Path(weights)

    def load(self) -> DigitClassifier:
        """Return the classifier."""
        return load_shipped(DigitClassifier, self.weights, "the digits classifier")

    @cached_property
    def name(self) -> str:
        """Return `digits-classifier/` and the hash of the weights."""
        return f"digits-classifier/{weights_hash(self.network)}"

    def extract(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        """Return the features of images, in float32 on the CPU; n may be zero."""
        if images.shape[1:] != (1, 8, 8):
            raise ValueError(
                f"the digits classifier reads images of shape (n, 1, 8, 8); got "
                f"{tuple(images.shape)}. Use InceptionV3 for images other than digits."
            )
        with measuring(self.device):
            pool = self.network.features(images.to(self.device).float() / 127.5 - 1)
            logits = self.network.head(pool)
        return Features(pool.cpu(), logits.cpu())


Shipped = TypeVar("Shipped", bound=nn.Module)


def load_shipped(kind: type[Shipped], path: Path, what: str) -> Shipped:
    """Return a network of the zoo, whose weights are in a safetensors file.

    Raises:
        ValueError: if the file is missing, cut off, or holds another network's weights.
    """
    try:
        with building():
            network = kind()
            network.load_state_dict(load_file(path))
            return network.eval()
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"cannot load {what} from {path}: {error}. The file ships with the "
            "package; reinstall it, or give the path of an intact copy as weights=."
        ) from error


def weights_hash(network: nn.Module) -> str:
    """Return eight digits of a digest of the weights' names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


@contextmanager
def building() -> Iterator[None]:
    """Build an extractor's network without a trace: same weights and same run, at any moment.

    Initialisation would draw from the global random numbers, bf16 training sets a default dtype
    that would round the weights, and a validation loop makes tensors that cannot be trained on.
    """
    cpu_only: list[int] = []
    with torch.inference_mode(False), torch.random.fork_rng(cpu_only), float32_by_default():
        yield


@contextmanager
def measuring(device: torch.device) -> Iterator[None]:
    """Run an extractor's network in float32 proper, whatever the run around it uses."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        float32_by_default(),
        in_full_precision(device),
    ):
        yield


@contextmanager
def in_full_precision(device: torch.device) -> Iterator[None]:
    """Let products be as precise as what is multiplied, whatever the run around them uses."""
    with torch.autocast(device.type, enabled=False), without_tf32():
        yield


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make tensors of no stated type float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Give float32 products their full mantissa; cuDNN's convolutions lack it by default."""
    backends = (
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
    )
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
