"""What do our metrics cost? Run: OMP_NUM_THREADS=1 python benchmarks/metrics_cost.py

Features are given, random and as wide as Inception's. Ours, torch-fidelity's and torchmetrics' take
turns on the same ones in every round; a ratio is their median time over ours, so above 1 we are
faster. Time is the processor's, which others on the machine do not add to: use one thread. They
compute in float32, but for FID; ours are the numbers of float64. KID is of 10 subsets of 1000, to
be done in minutes; `--full` takes the published 100.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ditprune.metrics import frechet_distance, precision_recall, subset_distances

WIDTH = 2048
Measured = Callable[[Tensor, Tensor], float]


class Given(nn.Module):
    """Lets torchmetrics have its features as they are."""

    num_features = WIDTH

    def forward(self, features: Tensor) -> Tensor:
        return features


def features(num_images: int, seed: int) -> Tensor:
    """Correlated, and not negative, as Inception's are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(9))
    x = torch.randn(num_images, 64, generator=generator) @ mixing / 16
    return (x + 0.3 * torch.randn(num_images, WIDTH, generator=generator) + 0.02 * seed).relu()


def fid_of_fidelity(x: Tensor, y: Tensor) -> float:
    statistics = fid_features_to_statistics(x), fid_features_to_statistics(y)
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def by_torchmetrics(metric: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    metric.update(x, real=False)
    metric.update(y, real=True)
    return metric.compute()


def fids() -> dict[str, Measured]:
    return {
        "ours": lambda x, y: frechet_distance(x, y).item(),
        "torch-fidelity": fid_of_fidelity,
        "torchmetrics": lambda x, y: by_torchmetrics(
            FrechetInceptionDistance(Given(), input_img_size=(WIDTH,)), x, y
        ).item(),
    }


def kids(num_subsets: int) -> dict[str, Measured]:
    settings = {"kid_subsets": num_subsets, "rng_seed": 2020, "verbose": False}
    return {
        "ours": lambda x, y: subset_distances(x, y, num_subsets)[0],
        "ours in float64": lambda x, y: subset_distances(x.double(), y.double(), num_subsets)[0],
        "torch-fidelity": lambda x, y: kid_features_to_metric(x, y, **settings)[
            "kernel_inception_distance_mean"
        ],
        "torchmetrics": lambda x, y: by_torchmetrics(
            KernelInceptionDistance(Given(), subsets=num_subsets), x, y
        )[0].item(),
    }


def precisions() -> dict[str, Measured]:
    return {
        "ours": lambda x, y: precision_recall(x, y)[0],
        "torch-fidelity": lambda x, y: prc_features_to_metric(x, y, verbose=False)["precision"],
    }


def compare(title: str, rivals: dict[str, Measured], x: Tensor, y: Tensor, rounds: int) -> None:
    """Print value and median time of each, and the ratio of its time to ours."""
    values, seconds = {}, {name: [] for name in rivals}
    for _ in range(rounds):
        for name, measure in rivals.items():
            start = time.process_time()
            values[name] = measure(x, y)
            seconds[name].append(time.process_time() - start)
    for name, value in values.items():
        median = statistics.median(seconds[name])
        ratio = median / statistics.median(seconds["ours"])
        print(f"{title:>16} {name:>15}: {value:.9g} in {median:5.1f} s, ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    x, y = features(options.num_images, 0), features(options.num_images, 1)
    num_subsets = 100 if options.full else 10
    compare("FID", fids(), x, y, options.rounds)
    compare(f"KID, {num_subsets} subsets", kids(num_subsets), x, y, options.rounds)
    compare("precision", precisions(), x, y, options.rounds)


if __name__ == "__main__":
    main()
