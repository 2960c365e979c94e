"""Real images: their features, extracted once for each network, or statistics of them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ditprune.atomic import writing
from ditprune.distributed import barrier, on_first_rank, share_of_rank
from ditprune.identity import Images, Source, identify
from ditprune.joined import mapped
from ditprune.measurement import Real
from ditprune.meters import rows
from ditprune.metrics import FeatureExtractor, Features
from ditprune.statistics_file import load_statistics

ABOUT = "features of real images that ditprune compared with; without them they are extracted anew"


class Reference(NamedTuple):
    """What generated images are compared with, in files."""

    source: Source
    """No images, where there are only statistics."""
    files: list[Path]
    """Features, batch by batch."""
    statistics: Path | None = None
    """Of images that there may be more of, as ADM's evaluator and `ditprune statistics` write."""

    @property
    def name(self) -> str:
        """Return which images they are, and which statistics Frechet distances are measured to."""
        parts = [self.source.name] if self.source.num_images else []
        if self.statistics is not None:
            content = hashlib.sha256(self.statistics.read_bytes()).hexdigest()[:16]
            parts.append(f"Frechet distances to {self.statistics.name}, {content}")
        return "; ".join(parts)

    def real(self, extractor: FeatureExtractor) -> Real:
        """Read everything.

        Raises:
            ValueError: if the statistics are of another network.
        """
        known = load_statistics(self.statistics, extractor) if self.statistics else None
        if self.files:
            return Real(Features(**mapped(map(load_file, self.files))), known)
        assert known is not None
        return Real(known.none(), known)


def extract_reference(
    images: Callable[[], Images],
    extractor: FeatureExtractor,
    folder: Path,
    statistics: Path | None = None,
) -> Reference:
    """Extract the features of real images that have none on disk yet; every process its share.

    The images are read each time, to see whether they are still the same, and only if a batch has
    no features, the network.

    Args:
        images: gives them from the beginning, in the same batches on every rank.
        extractor: the network.
        folder: where features are kept: a folder for each pair of images and network.
        statistics: of real images, if there are some; then images need not be.
    """
    source = on_first_rank(lambda: identify(images()))
    digest = hashlib.sha256(f"{extractor.name} {source}".encode()).hexdigest()[:16]
    home = folder / digest
    files = [home / f"{index:06d}.safetensors" for index in range(source.num_batches)]
    on_first_rank(lambda: tell(home, source, extractor))
    if not on_first_rank(lambda: all(is_whole(path) for path in files)):
        for path, batch in share_of_rank(zip(files, images(), strict=True)):
            if not is_whole(path):
                features = extractor.extract(batch).tensors()
                with writing(path) as draft:
                    save_file({name: rows(x, len(x)) for name, x in features.items()}, draft)
    barrier()
    return Reference(source, files, statistics)


def tell(home: Path, source: Source, extractor: FeatureExtractor) -> None:
    """Write down what the files are of."""
    content = {"about": ABOUT, "features": extractor.name, **source._asdict()}
    with writing(home / "manifest.json") as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n")


def is_whole(path: Path) -> bool:
    """Tell whether a file of features can be read."""
    try:
        load_file(path)
    except (OSError, SafetensorError):
        return False
    return True
