"""How much slower does recording make a forward? Run: python benchmarks/hooks_cost.py

Plain and recorded forwards of one model alternate; the medians of both are compared. The shape
is that of DiT-XL/2 at 256 x 256 (1152 wide, 256 tokens, two guidance branches), four blocks deep.
"""

import statistics
import time
from collections.abc import Callable

import torch
from diffusers import DiTTransformer2DModel

from ditprune.activations import ActivationStats, recording
from ditprune.families import Batch, DiT
from ditprune.pipeline import target_weights

NUM_ROUNDS = 15


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    model = DiTTransformer2DModel(num_layers=4, sample_size=32).eval()
    family = DiT()
    stats = {
        target: ActivationStats(weight.shape[1], num_timestep_bins=10)
        for target, weight in target_weights(model, family).items()
    }
    batch = Batch(torch.randn(1, 4, 32, 32), torch.tensor([500]), torch.tensor([7]), torch.ones(1))

    def plain() -> None:
        family.predict(model, batch)

    def recorded() -> None:
        with recording(model, stats, timestep_bin=5):
            family.predict(model, batch)

    plain(), recorded()  # warm up
    rounds = [(seconds(plain), seconds(recorded)) for _ in range(NUM_ROUNDS)]
    median_plain, median_recorded = (
        statistics.median(times) for times in zip(*rounds, strict=True)
    )
    print(f"plain {median_plain * 1e3:.1f} ms, recorded {median_recorded * 1e3:.1f} ms")
    ratios = sorted(recorded / plain for plain, recorded in rounds)
    print(
        f"ratio of medians {median_recorded / median_plain:.3f}; of single rounds: median "
        f"{statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}; "
        f"{NUM_ROUNDS} rounds, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
