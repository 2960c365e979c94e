"""Does a gradient tell what pruning shows? Run: OMP_NUM_THREADS=1 python benchmarks/sensitivity.py

What a unit of each layer's output error costs the images of digits-dit, measured in two ways along
the same short trajectories: `OneLayerSensitivity` prunes the layers one by one,
`TrajectoryImportance` takes one gradient for all. Both alternate, each round from other noise.
Spearman's correlation over the layers tells how well the one predicts the ranks of the other; that
of two measurements from other noise, how well anything could. Then the gradient as `best` has it,
from more and longer trajectories, against the last measurement.
"""

import statistics
import time
from itertools import pairwise

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ditprune.datamodules import DigitsDataModule
from ditprune.families import DiT
from ditprune.importance import ImportanceMeasure, TrajectoryImportance
from ditprune.layers import target_weights
from ditprune.sensitivity import OneLayerSensitivity
from ditprune.zoo import load_pretrained

NUM_ROUNDS = 3
SHORT = {"num_trajectories": 32, "num_steps": 10}


def agreement(one: Tensor, other: Tensor) -> float:
    return float(spearmanr(one, other).statistic)


def main() -> None:
    pretrained, family = load_pretrained("digits-dit"), DiT()
    weights = target_weights(pretrained.transformer, family)
    batches = list(DigitsDataModule().calibration_dataloader())

    def timed(measure: ImportanceMeasure) -> tuple[Tensor, float]:
        start = time.perf_counter()
        found = measure.measure(
            pretrained.transformer, batches, family, weights, pretrained.scheduler
        )
        costs = torch.stack([matrix.diagonal().mean() for matrix in found.values()])
        return costs, time.perf_counter() - start

    scans = []
    for seed in range(NUM_ROUNDS):
        scan, scan_seconds = timed(OneLayerSensitivity(**SHORT, seed=seed))
        gradient, seconds = timed(TrajectoryImportance(**SHORT, seed=seed))
        print(
            f"pruned one by one {scan_seconds:.1f} s; gradient {seconds:.1f} s, "
            f"{seconds / scan_seconds:.2f} of that; rank correlation "
            f"{agreement(scan, gradient):.3f}",
            flush=True,
        )
        scans.append(scan)
    noise = statistics.fmean(agreement(*pair) for pair in pairwise(scans))
    gradient, seconds = timed(TrajectoryImportance())
    print(
        f"two measurements from other noise: {noise:.3f}\n"
        f"gradient as `best` has it: {agreement(scans[-1], gradient):.3f}, {seconds:.1f} s\n"
        f"{len(weights)} layers; {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
