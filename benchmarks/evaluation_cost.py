"""What does evaluation cost beside sampling? OMP_NUM_THREADS=1 python benchmarks/evaluation_cost.py

The digits are drawn once plainly and once with all that evaluation does: features, hashes, PNGs,
shards and metrics; they take turns, and a ratio is the evaluation's time over the plain one's.
`--memory` draws 50,000 images of 3 x 32 x 32 by a fake sampler, with features as wide as
Inception's, compares them with 10,000 others, and prints how much memory each step took.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ditprune.evaluation import (
    SamplingPlan,
    draw_chunk,
    draw_samples,
)
from ditprune.lit import DenoiserModule
from ditprune.measurement import Real, extract_all, measure, measure_values
from ditprune.metrics import (
    DigitsClassifier,
    FeatureExtractor,
    Features,
    FrechetDistance,
    InceptionScore,
    KernelInceptionDistance,
    PrecisionRecall,
    SpatialFrechetDistance,
)
from ditprune.zoo.digits import load_split


class Wide(FeatureExtractor):
    """Features as wide as Inception's, that cost little."""

    name = "wide"
    mixing = torch.randn(3 * 32 * 32, 2048, generator=torch.Generator().manual_seed(0)) / 55

    def extract(self, images: torch.Tensor) -> Features:
        pool = images.flatten(1).float() / 255 @ self.mixing
        return Features(pool, pool[:, :1008], pool[:, :2023])

    def to(self, device: torch.device | str) -> "Wide":
        return self


class Noise:
    """Draws noise."""

    def sample(self, condition: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        return torch.stack([torch.rand(3, 32, 32, generator=g) * 2 - 1 for g in generators])


def seconds(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def overhead(num_samples: int, num_rounds: int) -> None:
    """Print the ratio of evaluation and plain sampling, turn about."""
    module = DenoiserModule.from_pretrained("digits-dit").eval()
    plan = SamplingPlan(torch.arange(num_samples) % 10)
    classifier = DigitsClassifier()
    real = ((load_split().train.images + 1) * 127.5).round().to(torch.uint8)
    reference = Real(extract_all([real], classifier))

    def plain() -> None:
        for chunk in plan.chunks():
            draw_chunk(module, plan, chunk)

    def evaluation() -> None:
        with tempfile.TemporaryDirectory() as folder:
            drawn = draw_samples(module, plan, classifier, Path(folder), "digits")
            features = (samples.features for samples in drawn.values())
            measure(features, reference, [FrechetDistance(), InceptionScore(), PrecisionRecall()])
            measure_values(drawn.values())

    ratios = []
    for _ in range(num_rounds):
        alone, whole = seconds(plain), seconds(evaluation)
        ratios.append(whole / alone)
        print(f"sampling {alone:.2f} s, evaluation {whole:.2f} s, ratio {ratios[-1]:.3f}")
    print(f"median ratio {statistics.median(ratios):.3f}, {num_samples} images")


@contextmanager
def grown(title: str) -> Iterator[None]:
    """Print by how much the process' own memory, which no file holds, grew at most meanwhile."""
    before, peak, done = own_memory(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    yield
    done.set()
    watcher.join()
    print(f"{title}: {peak - before:.0f} MiB more, {time.perf_counter() - start:.0f} s", flush=True)


def own_memory() -> float:
    """Return the MiB in memory that no file holds; Linux tells them."""
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x]
    return int(line.split()[1]) / 2**10


def memory(num_samples: int) -> None:
    """Print how much the memory grew in drawing, and in comparing sets by each metric."""
    metrics = [
        FrechetDistance(),
        SpatialFrechetDistance(),
        InceptionScore(),
        KernelInceptionDistance(num_subsets=100),
        PrecisionRecall(),
    ]
    plan = SamplingPlan(torch.zeros(num_samples, dtype=torch.long))
    others = SamplingPlan(torch.zeros(10_000, dtype=torch.long), seeds=(1,))
    with tempfile.TemporaryDirectory() as folder:
        [real] = draw_samples(Noise(), others, Wide(), Path(folder), "real").values()
        reference = Real(real.features)
        with grown(f"drawing {num_samples} images and pairing them"):
            dense = draw_samples(Noise(), plan, Wide(), Path(folder), "noise")
            draw_samples(Noise(), plan, Wide(), Path(folder), "pairs", dense=dense)
        with grown("reading their features"):
            features = dense[0].features
        for metric in metrics:
            with grown(metric.protocol):
                measure([features], reference, [metric])
    size = sum(x.numel() * 4 for x in features.tensors().values()) / 2**20
    print(f"the features take {size:.0f} MiB, the pixels {num_samples * 3 * 32 * 32 / 2**20:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_samples", type=int)
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    if options.memory:
        memory(options.num_samples or 50_000)
    else:
        overhead(options.num_samples or 500, options.num_rounds)


if __name__ == "__main__":
    main()
