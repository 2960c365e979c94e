"""Mean and covariance of real images' features in a file: `ditprune statistics`, and ADM's own."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from rich.progress import track
from torch import Tensor

from ditprune.atomic import writing
from ditprune.identity import identify
from ditprune.image_files import DAMAGED, read_images
from ditprune.measurement import extract_all
from ditprune.metrics import FeatureExtractor, Features, InceptionV3
from ditprune.metrics.frechet import Spread, root_of

log = logging.getLogger(__name__)


class Gaussian(NamedTuple):
    """What a Frechet distance knows of a set of features."""

    mean: Float64[Tensor, " d"]
    covariance: Float64[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> "Gaussian":
        """Return that of a set; the covariance is the unbiased one."""
        spread = Spread(features)
        return cls(spread.mean, spread.covariance)

    def points(self, count: int) -> Float64[Tensor, "count d"]:
        """Return points of just this mean and covariance: those of a root, on both sides.

        So a Frechet distance to statistics is one to features. There are at least twice as many
        as dimensions.
        """
        root = root_of(self.covariance) * ((count - 1) / 2) ** 0.5
        rest = root.new_zeros(count - 2 * len(root), root.shape[1])
        return self.mean + torch.cat([root, -root, rest])


def statistics(images: Path, target: Path, extractor: FeatureExtractor | None = None) -> None:
    """Write mean and covariance of images' features, to be compared with in place of them.

    In the layout of ADM's evaluator: mu and sigma, and mu_s and sigma_s of the spatial features.
    Beside it a .json says what they are of; `ditprune score` refuses them for another network.

    Args:
        images: a folder of images, or an npz as ADM's evaluator writes it.
        target: the .npz to write.
        extractor: the network; None is InceptionV3.

    Raises:
        ValueError: if images cannot be read, or are fewer than two.
    """
    if target.suffix != ".npz" or target.absolute() == images.absolute():
        raise ValueError(f"statistics are written to an .npz of their own; got {target}")
    extractor = extractor or InceptionV3()
    source = identify(read_images(images))
    if source.num_images < 2:
        raise ValueError(f"{images} holds one image, which has no covariance")
    features = extract_all(track(read_images(images), "images"), extractor)
    arrays: dict[str, Any] = {"n": np.array(source.num_images)}
    for part, suffix in ((features.pool, ""), (features.spatial, "_s")):
        if part is not None:
            gaussian = Gaussian.of(part)
            arrays[f"mu{suffix}"] = gaussian.mean.numpy()
            arrays[f"sigma{suffix}"] = gaussian.covariance.numpy()
    with writing(target) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)
    side = {"features": extractor.name, "images": str(images), **source._asdict()}
    with writing(target.with_suffix(".json")) as draft:
        draft.write_text(json.dumps(side, indent=2) + "\n")


def holds_statistics(path: Path) -> bool:
    """Tell whether a file holds a mean and a covariance, of images that it may hold too."""
    return {"mu", "sigma"} <= arrays_in(path)


def holds_images(path: Path) -> bool:
    """Tell whether there are images: in a folder, or beside statistics or without them."""
    return "arr_0" in arrays_in(path) or not holds_statistics(path)


def arrays_in(path: Path) -> set[str]:
    """Return the names of the arrays of an npz, or none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return set(file.files) if isinstance(file, np.lib.npyio.NpzFile) else set()
    except (OSError, EOFError, ValueError, *DAMAGED):
        return set()


def load_statistics(path: Path, extractor: FeatureExtractor) -> Features:
    """Return features of the mean and covariance in a file.

    Raises:
        ValueError: if they are of another network.
    """
    demand_network(path, extractor)
    pool = read_gaussian(path, "mu", "sigma")
    spatial = read_gaussian(path, "mu_s", "sigma_s") if "mu_s" in arrays_in(path) else None
    count = 2 * max(len(part.mean) for part in (pool, spatial) if part)
    points = pool.points(count)
    return Features(points, points.new_zeros(count, 0), spatial and spatial.points(count))


def read_gaussian(path: Path, mean: str, covariance: str) -> Gaussian:
    """Return what two arrays of an npz tell.

    Raises:
        ValueError: if they cannot be read, or are no mean and covariance.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = (torch.from_numpy(file[name]).double() for name in (mean, covariance))
    except (OSError, EOFError, KeyError, TypeError, ValueError, *DAMAGED) as error:
        raise ValueError(f"cannot read {mean} and {covariance} of {path}: {error}") from error
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not len(mu):
        raise ValueError(
            f"{mean} and {covariance} of {path} must be [d] and [d, d]; they are "
            f"{list(mu.shape)} and {list(sigma.shape)}"
        )
    if not is_covariance(sigma) or not mu.isfinite().all():
        raise ValueError(
            f"{mean} and {covariance} of {path} are no mean and covariance, which are finite, "
            "symmetric and without negative eigenvalues: is the file damaged?"
        )
    return Gaussian(mu, sigma)


def is_covariance(matrix: Float64[Tensor, "d d"]) -> bool:
    """Tell whether a matrix may be a covariance, but for rounding in float32."""
    if not matrix.isfinite().all():
        return False
    rounding = 1e-5 * matrix.abs().max()
    return bool(
        (matrix - matrix.T).abs().max() <= rounding
        and torch.linalg.eigvalsh(matrix).min() >= -len(matrix) * rounding
        and matrix.diagonal().min() >= 0
    )


def demand_network(path: Path, extractor: FeatureExtractor) -> None:
    """Raise a ValueError if statistics are known to be of another network."""
    side = path.with_suffix(".json")
    if not side.exists():
        log.warning(
            "there is no %s to say of which network the statistics in %s are: taken for %s",
            side.name,
            path,
            extractor.name,
        )
        return
    try:
        name = json.loads(side.read_text())["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read of which network {path} is from {side}: {error}") from error
    if name != extractor.name:
        raise ValueError(
            f"the statistics in {path} are of {name}, and the images are seen by {extractor.name}: "
            "make them anew by `ditprune statistics`, or give that network as --extractor"
        )
