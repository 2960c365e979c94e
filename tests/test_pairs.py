import pytest
import torch

from ditprune.evaluation import draw_samples
from ditprune.metrics.paired import ALWAYS, PairedMetric
from ditprune.pairs import PairedSamples
from ditprune.sampling_plan import SamplingPlan

PROMPTS = [f"prompt {i}" for i in range(7)]


class Noise:
    """Draws an image from the generator, and adds some more from it."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def sample(self, condition, generators):
        def draw(generator):
            clean = torch.rand(3, 8, 8, generator=generator) - 0.5
            return clean + self.strength * torch.randn(1, generator=generator)

        return torch.stack([draw(generator) for generator in generators])


class Centre(PairedMetric):
    """The difference in one pixel: it orders pairs otherwise than MSE does."""

    name = "lpips/toy/1234"

    def compare(self, images, others):
        return (images.double() - others.double())[:, 0, 4, 4].abs()


def drawn(folder, metrics=ALWAYS, prompts=PROMPTS) -> PairedSamples:
    plan = SamplingPlan(torch.arange(7) + 3, (5, 2), 3, prompts)
    dense = draw_samples(Noise(0.0), plan, None, folder, "dense")
    pruned = draw_samples(Noise(0.2), plan, None, folder, "pruned", (), metrics, dense)
    return PairedSamples(plan, dense, pruned)


def errors(samples: PairedSamples) -> dict[tuple[int, int], float]:
    """The MSE of each pair by seed and id, from all images at once."""
    return {
        (seed, i): float(
            ((samples.dense[seed].images[i] / 255 - samples.pruned[seed].images[i] / 255) ** 2)
            .double()
            .mean()
        )
        for seed in (5, 2)
        for i in range(7)
    }


def test_the_worst_pairs_are_those_of_the_largest_error_over_all_seeds(tmp_path):
    samples = drawn(tmp_path)
    known = errors(samples)
    worst = sorted(known, key=known.__getitem__, reverse=True)[:5]
    assert len({seed for seed, _ in worst}) == 2
    assert [pair.origin for pair in samples.worst(5)] == [
        f"seed {seed}, sample {i}, mse {known[seed, i]:.3g}" for seed, i in worst
    ]
    for pair, (seed, i) in zip(samples.worst(5), worst, strict=True):
        assert torch.equal(pair.dense, samples.dense[seed].images[i])
        assert torch.equal(pair.pruned, samples.pruned[seed].images[i])
        assert pair.asked == PROMPTS[i]


def test_they_are_ranked_by_lpips_where_it_was_measured(tmp_path):
    samples = drawn(tmp_path, (*ALWAYS, Centre()))
    centres = [
        Centre().compare(samples.pruned[seed].images, samples.dense[seed].images) for seed in (5, 2)
    ]
    assert samples.measure == "lpips/toy/1234"
    largest = torch.stack(centres).max().item()
    assert samples.worst(1)[0].origin.endswith(f", lpips {largest:.3g}")


def test_the_first_pairs_are_those_of_the_first_seed_and_no_more_than_there_are(tmp_path):
    pairs = drawn(tmp_path).first(20)
    assert [pair.asked for pair in pairs] == PROMPTS
    assert all(pair.origin.startswith("seed 5, ") for pair in pairs)


@pytest.mark.parametrize("sample_id", [0, 6])
def test_without_prompts_the_condition_is_told(tmp_path, sample_id):
    pair = drawn(tmp_path, prompts=()).first(7)[sample_id]
    assert pair.asked == f"condition {sample_id + 3}"
