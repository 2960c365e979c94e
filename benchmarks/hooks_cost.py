"""How much slower does recording make a forward? Run: python benchmarks/hooks_cost.py

Plain and recorded forwards of one model alternate, and each pair gives a ratio. The shape is
that of DiT-XL/2 at 256 x 256 (1152 wide, 256 tokens, two guidance branches), four blocks deep.
"""

import statistics
import time
from collections.abc import Callable

import torch
from diffusers import DiTTransformer2DModel

from ditprune.activations import ActivationStats, recording
from ditprune.families import Batch, DiT
from ditprune.layers import target_weights

NUM_ROUNDS = 40


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
    ratios = [1 / (seconds(plain) / seconds(recorded)) for _ in range(NUM_ROUNDS)]
    low, median, high = statistics.quantiles(ratios, n=4)
    print(
        f"recorded / plain: median {median:.3f}, quartiles {low:.3f} and {high:.3f}, over "
        f"{NUM_ROUNDS} alternating rounds; {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}"
    )


if __name__ == "__main__":
    main()
