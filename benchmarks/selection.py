"""How much faster is selecting by thresholds than by sorting? Run: python benchmarks/selection.py

Plain and ours alternate, and each pair gives a ratio; the masks must be the same, bit for bit.
The shapes are those of DiT-XL/2 (1152 wide), at 50 %. First the selection alone: `Row` against a
stable sort of every row. Then pruning four blocks, from weights and activations to masks:
against the loop of Wanda's code (https://github.com/locuslab/wanda, lib/prune.py), which sorts
every row and scatters the indices. Of equals the first stays here, hence sorts that descend.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ditprune.activations import ActivationStats
from ditprune.granularity import Pools, Row
from ditprune.saliency import Energy
from ditprune.targets import PruneTarget, Role

WIDTH = 1152
BLOCK = {
    Role.MODULATION: (6 * WIDTH, WIDTH),
    Role.ATTN_Q: (WIDTH, WIDTH),
    Role.ATTN_K: (WIDTH, WIDTH),
    Role.ATTN_V: (WIDTH, WIDTH),
    Role.ATTN_OUT: (WIDTH, WIDTH),
    Role.MLP_UP: (4 * WIDTH, WIDTH),
    Role.MLP_DOWN: (WIDTH, 4 * WIDTH),
}
NUM_BLOCKS = 4
NUM_ROUNDS = 9

Layers = Mapping[PruneTarget, Tensor]


def by_sorting(score: Tensor) -> Tensor:
    """Keep the better half of every row."""
    mask = torch.zeros_like(score, dtype=torch.bool)
    best = score.sort(dim=1, descending=True, stable=True).indices[:, : score.shape[1] // 2]
    return mask.scatter_(1, best, True)


def pools_of(score: Tensor) -> Pools:
    layer = PruneTarget("layer", Role.MLP_UP, block=0, num_heads=16)
    return Row().pools({layer: score}, {layer: score.numel() // 2})[layer]


def plain_loop(weights: Layers, rms: Layers) -> dict[PruneTarget, Tensor]:
    return {target: by_sorting(weight.abs() * rms[target]) for target, weight in weights.items()}


def ours(weights: Layers, stats: Mapping[PruneTarget, ActivationStats]) -> Mapping[..., Tensor]:
    """Score and select as `ditprune.pipeline` does, layer by layer."""
    wanda = Energy(weight_exponent=1.0, activation_exponent=1.0)
    masks = {}
    for target, weight in weights.items():
        score = wanda.score(weight, stats[target])
        masks[target] = pools_of(score).keep(score)
    return masks


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def report(name: str, plain: Callable[[], object], fast: Callable[[], object]) -> None:
    """Print how many times as long the plain way takes."""
    ratios = [seconds(plain) / seconds(fast) for _ in range(NUM_ROUNDS)]
    low, median, high = statistics.quantiles(ratios, n=4)
    print(f"{name}: {median:.2f} times as fast, quartiles {low:.2f} and {high:.2f}")


def compare_selection(shape: tuple[int, int]) -> None:
    score = torch.rand(shape)
    pools = pools_of(score)
    assert torch.equal(pools.keep(score), by_sorting(score))
    report(
        f"selection, {shape[0]} x {shape[1]}", lambda: by_sorting(score), lambda: pools.keep(score)
    )


def compare_pruning() -> None:
    weights, stats = {}, {}
    for block in range(NUM_BLOCKS):
        for role, shape in BLOCK.items():
            target = PruneTarget(f"{block}.{role.value}", role, block, num_heads=16)
            weights[target] = torch.randn(shape)
            stats[target] = ActivationStats(shape[1])
            stats[target].add(torch.randn(1, 256, shape[1]) * torch.rand(shape[1]).exp())
    rms = {target: statistic.rms().float() for target, statistic in stats.items()}
    plain, masks = plain_loop(weights, rms), ours(weights, stats)
    assert all(torch.equal(plain[target], masks[target]) for target in weights)
    report("pruning", lambda: plain_loop(weights, rms), lambda: ours(weights, stats))


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    print(
        f"against a stable sort, {NUM_ROUNDS} alternating rounds; {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}"
    )
    for shape in dict.fromkeys(BLOCK.values()):
        compare_selection(shape)
    compare_pruning()


if __name__ == "__main__":
    main()
