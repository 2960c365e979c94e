import pytest
import torch

from ditprune.evaluation import (
    Samples,
    SamplingPlan,
    draw_samples,
    measure,
    measure_pairs,
    to_uint8,
)
from ditprune.metrics import FeatureExtractor, Features, FrechetDistance, frechet_distance


class CountingSampler:
    """Draws the condition's grey level with a little noise, and counts what it drew."""

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain
        self.num_drawn = 0

    def sample(self, condition, generators):
        self.num_drawn += len(condition)
        noise = torch.stack([torch.randn(1, 8, 8, generator=g) for g in generators])
        return (condition.view(-1, 1, 1, 1) / 10 + self.gain * noise / 10).clamp(-1, 1)


class Means(FeatureExtractor):
    name = "means"

    def extract(self, images):
        rows = images.float().mean(2).flatten(1)
        return Features(rows, rows)

    def to(self, device):
        return self


PLAN = SamplingPlan(torch.arange(7), seeds=(0, 5), chunk_size=3)


def test_every_condition_is_drawn_once_for_each_seed(tmp_path):
    samples = draw_samples(CountingSampler(), PLAN, Means(), tmp_path, "dense")
    assert samples.keys() == {0, 5}
    levels = samples[0].images.float().mean((1, 2, 3)) / 127.5 - 1
    assert torch.allclose(levels, torch.arange(7) / 10, atol=0.06)
    assert not torch.equal(samples[0].images, samples[5].images)


def test_images_do_not_depend_on_the_size_of_the_chunks(tmp_path):
    one = SamplingPlan(PLAN.conditions, chunk_size=1)
    chunked = draw_samples(CountingSampler(), PLAN, Means(), tmp_path, "dense")
    single = draw_samples(CountingSampler(), one, Means(), tmp_path, "dense")
    assert torch.equal(chunked[0].images, single[0].images)


def test_what_was_drawn_before_is_found_again_but_for_the_first_chunk(tmp_path):
    first, second = CountingSampler(), CountingSampler()
    drawn = draw_samples(first, PLAN, Means(), tmp_path, "dense")
    found = draw_samples(second, PLAN, Means(), tmp_path, "dense")
    assert torch.equal(drawn[5].images, found[5].images)
    assert torch.equal(drawn[5].features.pool, found[5].features.pool)
    assert (first.num_drawn, second.num_drawn) == (18, 3)


def test_another_model_never_finds_the_images_of_this_one(tmp_path):
    draw_samples(CountingSampler(), PLAN, Means(), tmp_path, "dense")
    other = CountingSampler(gain=1.1)
    draw_samples(other, PLAN, Means(), tmp_path, "pruned")
    assert other.num_drawn == 18


def test_a_damaged_chunk_is_drawn_again(tmp_path):
    drawn = draw_samples(CountingSampler(), PLAN, Means(), tmp_path, "dense")
    chunk = next(tmp_path.glob("*/seed5-000003.safetensors"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    again = CountingSampler()
    found = draw_samples(again, PLAN, Means(), tmp_path, "dense")
    assert again.num_drawn == 6
    assert torch.equal(found[5].images, drawn[5].images)


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="nothing to draw.*got 0 conditions"):
        SamplingPlan(torch.arange(0))


def test_images_are_rounded_to_nearest():
    greys = torch.tensor([-1.0, -0.9999, 0.0, 0.999, 1.0]).view(1, 1, 1, 5)
    assert to_uint8(greys).flatten().tolist() == [0, 0, 128, 255, 255]


def samples_of(seed: int) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (30, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Samples(images, Means().extract(images))


def test_metrics_are_computed_for_each_seed_on_its_own():
    reference = samples_of(9).features
    measured = measure(
        {seed: samples_of(seed).features for seed in (0, 1)}, reference, [FrechetDistance()]
    )
    assert measured["fid"] == [
        pytest.approx(frechet_distance(samples_of(seed).features.pool, reference.pool).item())
        for seed in (0, 1)
    ]


def test_pairs_are_those_of_one_seed():
    samples = {0: samples_of(0), 1: samples_of(1)}
    assert measure_pairs(samples, samples)["mse"] == [0, 0]
    assert min(measure_pairs(samples, {0: samples[1], 1: samples[0]})["mse"]) > 0.1
