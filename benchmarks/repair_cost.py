"""What does our SparseGPT cost? Run: OMP_NUM_THREADS=1 python benchmarks/repair_cost.py

Ours and a plain reading of the published algorithm alternate on the same problems, and each pair
gives a ratio of times and of losses. The shapes are those of DiT-XL/2: attention, and the second
layer of the MLP. The spectrum of the inputs falls as 1/k, and some channels are loud.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.granularity import Runs
from ditprune.repair import Repaired, SparseGPT
from ditprune.repair.base import quadratic

SHAPES = [(1152, 1152), (1152, 4608)]
NUM_ROUNDS = 3
BLOCK_SIZE = 128


def problem(num_outputs: int, num_inputs: int) -> tuple[Tensor, ActivationStats]:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(num_inputs, num_inputs, generator=generator))[0]
    loudness = (0.5 * torch.randn(num_inputs, generator=generator)).exp()
    loudness[::100] *= 10
    stats = ActivationStats(num_inputs, with_gram=True)
    spectrum = torch.arange(1, num_inputs + 1).rsqrt()
    for _ in range(4):
        x = torch.randn(num_inputs, num_inputs, generator=generator) * spectrum
        stats.add(x @ basis * loudness)
    return torch.randn(num_outputs, num_inputs, generator=generator) / num_inputs**0.5, stats


def published(weight: Tensor, hessian: Tensor, group: int) -> Tensor:
    """Algorithm 1 of arXiv 2301.00774 in float32, half of the weights; groups of 4 or none."""
    weight, hessian, num_inputs = weight.clone(), hessian.float(), weight.shape[1]
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, num_inputs, BLOCK_SIZE):
        end = min(start + BLOCK_SIZE, num_inputs)
        block, part = weight[:, start:end].clone(), factor[start:end, start:end]
        errors, kept = torch.zeros_like(block), torch.ones_like(block, dtype=torch.bool)
        if not group:
            score = block.square() / part.diagonal().square()
            kept = score > score.flatten().sort().values[score.numel() // 2 - 1]
        for j in range(end - start):
            if group and j % group == 0:
                score = block[:, j : j + group].square() / part.diagonal()[j : j + group].square()
                least = score.topk(group // 2, dim=1, largest=False).indices
                kept[:, j : j + group] = torch.ones_like(score).bool().scatter(1, least, False)
            errors[:, j] = block[:, j] * ~kept[:, j] / part[j, j]
            block[:, j:] -= errors[:, j : j + 1] @ part[j : j + 1, j:]
        weight[:, start:end] = block * kept
        weight[:, end:] -= errors @ factor[start:end, end:]
    return weight


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def compare(shape: tuple[int, int], group: int) -> str:
    weight, stats = problem(*shape)
    hessian = stats.second_moment()
    kept = torch.full((weight.numel() // group,), group // 2) if group else weight.numel() // 2
    pools = Runs("2:4", kept) if group else Runs("layer", torch.tensor([kept]))
    mask = pools.keep(weight.abs() * stats.rms().float())

    def ours() -> Repaired:
        return SparseGPT(block_size=BLOCK_SIZE).repair(weight, mask, stats, pools, False)

    rounds = []
    for _ in range(NUM_ROUNDS):
        plain_seconds, plain = timed(lambda: published(weight, hessian, group))
        our_seconds, solved = timed(lambda: ours().weight)
        losses = [quadratic(weight - pruned, hessian) for pruned in (solved, plain)]
        counts = [int((pruned == 0).sum()) for pruned in (solved, plain)]
        rounds.append((our_seconds / plain_seconds, our_seconds, losses[0] / losses[1], *counts))
    ratio, seconds, loss, our_zeros, their_zeros = map(statistics.median, zip(*rounds, strict=True))
    return (
        f"{shape[0]} x {shape[1]}, {pools.name}: ours / published: time {ratio:.2f} "
        f"({seconds:.1f} s), loss {loss:.5f}; zeros {our_zeros} and {their_zeros}"
    )


@torch.no_grad()
def main() -> None:
    for shape in SHAPES:
        for group in (0, 4):
            print(compare(shape, group), flush=True)
    print(f"{NUM_ROUNDS} rounds; {torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
