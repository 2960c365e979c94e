import hashlib
import json
import shutil

import pytest
import torch
from PIL import Image
from toy_prompts import Lengths

from ditprune import sampling_progress
from ditprune.evaluation import (
    SamplingPlan,
    draw_samples,
    to_uint8,
)
from ditprune.measurement import Real, measure, measure_values
from ditprune.metrics import (
    FeatureExtractor,
    Features,
    FrechetDistance,
    frechet_distance,
    paired_errors,
)
from ditprune.results import compare, summarize_changes


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


def damage_shard(home) -> None:
    path = home / "seed5" / "000003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def lose_picture(home) -> None:
    (home / "seed5" / "images" / "000004.png").unlink()


def cut_picture(home) -> None:
    path = home / "seed5" / "images" / "000004.png"
    path.write_bytes(path.read_bytes()[:-20])


def change_pixel(home) -> None:
    path = home / "seed5" / "images" / "000004.png"
    with Image.open(path) as picture:
        picture.putpixel((3, 3), 255 - picture.getpixel((3, 3)))
        picture.save(path)


def exchange_chunks(home) -> None:
    shutil.copy(home / "seed5" / "000000.safetensors", home / "seed5" / "000003.safetensors")


@pytest.mark.parametrize(
    "harm", [damage_shard, lose_picture, cut_picture, change_pixel, exchange_chunks]
)
def test_a_chunk_that_is_damaged_is_drawn_again(tmp_path, harm):
    drawn = draw_samples(CountingSampler(), PLAN, Means(), tmp_path, "dense")
    images, features = drawn[5].images, drawn[5].features
    harm(drawn[5].home)
    again = CountingSampler()
    found = draw_samples(again, PLAN, Means(), tmp_path, "dense")
    assert again.num_drawn == 3 + 3  # the first chunk, and the damaged one
    assert torch.equal(found[5].images, images)
    assert torch.equal(found[5].features.pool, features.pool)


@pytest.mark.parametrize("place", range(0, 90, 3))
def test_whatever_byte_of_a_picture_is_wrong_the_image_is_right(tmp_path, place):
    plan = SamplingPlan(torch.arange(2), chunk_size=2)
    drawn = draw_samples(CountingSampler(), plan, None, tmp_path, "dense")[0]
    images, path = drawn.images, drawn.home / "seed0" / "images" / "000001.png"
    content = bytearray(path.read_bytes())
    content[place] ^= 0x55
    path.write_bytes(content)
    found = draw_samples(CountingSampler(), plan, None, tmp_path, "dense")[0]
    assert torch.equal(found.images, images)


def test_a_chunk_of_another_configuration_is_refused(tmp_path):
    mine = draw_samples(CountingSampler(), PLAN, Means(), tmp_path, "dense")[0].home
    other = draw_samples(CountingSampler(2.0), PLAN, Means(), tmp_path, "pruned")[0].home
    shutil.copytree(other / "seed5", mine / "seed5", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=rf"another configuration: its manifest is {other.name}"):
        draw_samples(CountingSampler(), PLAN, Means(), tmp_path, "dense")


def test_the_manifest_tells_what_decided_the_images_and_what_differs(tmp_path):
    home = draw_samples(CountingSampler(), PLAN, Means(), tmp_path, "dense")[0].home
    content = json.loads((home / "manifest.json").read_text())
    assert content["drawn_first_for"] == "dense"
    assert content["decided_by"]["num_samples"] == 7
    content["decided_by"]["chunk_size"] = 4
    (home / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"other samples: chunk_size \(4, and not 3\)"):
        draw_samples(CountingSampler(), PLAN, Means(), tmp_path, "dense")


def test_prompts_and_weights_that_leave_the_first_images_alone_still_draw_anew(tmp_path):
    class Module(torch.nn.Module, CountingSampler):
        def __init__(self, last: float) -> None:
            super().__init__()
            CountingSampler.__init__(self)
            self.shift = torch.nn.Parameter(torch.tensor([0.0] * 6 + [last]))

        @torch.no_grad()
        def sample(self, condition, generators):
            return super().sample(condition, generators) + self.shift[condition].view(-1, 1, 1, 1)

    def draw(last: float, prompts):
        plan = SamplingPlan(PLAN.conditions, chunk_size=3, prompts=prompts)
        return draw_samples(Module(last), plan, None, tmp_path, "dense")[0]

    words = [f"word {i}" for i in range(7)]
    before, after, reworded = draw(0.0, words), draw(0.1, words), draw(0.1, [*words[:6], "else"])
    assert len({before.home, after.home, reworded.home}) == 3
    assert after.images[6].float().mean() > before.images[6].float().mean() + 5


def test_pictures_are_the_images_and_alone_in_their_folder_with_hashes_anyone_can_check(tmp_path):
    drawn = draw_samples(CountingSampler(), PLAN, Means(), tmp_path, "dense")[5]
    paths = sorted((drawn.home / "seed5" / "images").iterdir())
    assert [path.name for path in paths] == [f"{i:06d}.png" for i in range(7)]
    digest = hashlib.sha256()
    for path in paths:
        with Image.open(path) as picture:
            digest.update(hashlib.sha256(picture.tobytes()).digest())
    assert drawn.digest() == digest.hexdigest()
    assert torch.equal(torch.cat(list(drawn.batches())), drawn.images)
    assert torch.equal(drawn.first(4), drawn.images[:4])


def test_images_that_no_picture_can_hold_are_refused(tmp_path):
    class Strange(CountingSampler):
        def sample(self, condition, generators):
            return super().sample(condition, generators).expand(-1, 5, -1, -1)

    with pytest.raises(ValueError, match="of 1 or 3 channels; .* returned 5"):
        draw_samples(Strange(), PLAN, None, tmp_path, "dense")


WORDS = ["a", "bb", "a", "bb", "ccc", "dddd", "a"]
PROMPTED = SamplingPlan(PLAN.conditions, PLAN.seeds, 3, WORDS)


def test_every_image_is_scored_with_its_own_prompt(tmp_path):
    drawn = draw_samples(CountingSampler(), PROMPTED, None, tmp_path, "dense", [Lengths()])
    for samples in drawn.values():
        expected = samples.images.double().mean((1, 2, 3)) / torch.tensor([*map(len, WORDS)])
        assert torch.equal(samples.values()["lengths/v1"], expected)
    means = measure_values(drawn.values())["lengths/v1"]
    assert means == [pytest.approx(s.values()["lengths/v1"].mean().item()) for s in drawn.values()]


def test_what_was_not_measured_is_measured_of_the_images_on_disk_and_the_rest_is_kept(tmp_path):
    class Others(Means):
        name = "others"

        def extract(self, images):
            return Features(images.float().flatten(1), images.float().flatten(1))

    draw_samples(CountingSampler(), PROMPTED, Means(), tmp_path, "dense")
    sampler, metric = CountingSampler(), Lengths()
    drawn = draw_samples(sampler, PROMPTED, Others(), tmp_path, "dense", [metric])
    assert (sampler.num_drawn, metric.num_scored) == (3, 18)
    assert torch.equal(drawn[5].features.pool, drawn[5].images.float().flatten(1))
    found = draw_samples(CountingSampler(), PROMPTED, Means(), tmp_path, "dense", [metric])
    assert metric.num_scored == 18
    assert found[5].features.pool.shape == (7, 8)
    assert found[5].values().keys() == {"lengths/v1"}


def test_the_order_of_the_chunks_decides_nothing(tmp_path, monkeypatch):
    def drawn(folder):
        samples = draw_samples(CountingSampler(), PROMPTED, Means(), folder, "dense", [Lengths()])
        measured = measure_values(samples.values())
        return compare({}, {"dense": (samples, measured)}, PROMPTED.groups()).to_dict()

    forth = drawn(tmp_path / "forth")
    monkeypatch.setattr(sampling_progress, "share_of_rank", lambda chunks: reversed(list(chunks)))
    assert drawn(tmp_path / "back") == forth


def test_errors_are_those_to_the_dense_image_of_the_same_noise(tmp_path):
    dense = draw_samples(CountingSampler(), PLAN, None, tmp_path, "dense")
    pruned = draw_samples(CountingSampler(1.3), PLAN, None, tmp_path, "pruned", dense=dense)
    for seed in PLAN.seeds:
        expected = paired_errors(pruned[seed].images, dense[seed].images)
        for name, values in pruned[seed].values().items():
            assert torch.allclose(values, expected[name], rtol=1e-12)
    again = draw_samples(CountingSampler(), PLAN, None, tmp_path, "pruned", dense=dense)
    assert measure_values(again.values())["mse"] == [0, 0]


def test_images_of_another_plan_are_no_pairs(tmp_path):
    dense = draw_samples(CountingSampler(), PLAN, None, tmp_path, "dense")
    other = SamplingPlan(torch.arange(6), PLAN.seeds, 3)
    with pytest.raises(ValueError, match=r"no pairs, .* num_samples \(7, and not 6\)"):
        draw_samples(CountingSampler(), other, None, tmp_path, "pruned", dense=dense)


def test_changes_are_those_of_single_images_and_seeds_of_one_prompt_stay_together(tmp_path):
    dense, pruned = (
        draw_samples(CountingSampler(gain), PROMPTED, None, tmp_path, "", [Lengths()])
        for gain in (1.0, 1.5)
    )
    change = summarize_changes(pruned, dense, PROMPTED.groups())["lengths/v1"]
    each = torch.cat([pruned[s].values()["lengths/v1"] - dense[s].values()["lengths/v1"]
                      for s in PLAN.seeds])  # fmt: skip
    assert change.mean == pytest.approx(each.mean().item())
    assert change.median == pytest.approx(each.quantile(0.5).item())
    assert PROMPTED.groups().tolist() == [0, 1, 0, 1, 2, 3, 0]


def test_prompts_for_other_samples_and_seeds_given_twice_are_refused():
    with pytest.raises(ValueError, match="6 prompts for 7 samples"):
        SamplingPlan(PLAN.conditions, prompts=WORDS[:6])
    with pytest.raises(ValueError, match=r"a seed given twice .* \(1, 1\)"):
        SamplingPlan(PLAN.conditions, seeds=(1, 1))


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="nothing to draw.*got 0 conditions"):
        SamplingPlan(torch.arange(0))


def test_images_are_rounded_to_nearest():
    greys = torch.tensor([-1.0, -0.9999, 0.0, 0.999, 1.0]).view(1, 1, 1, 5)
    assert to_uint8(greys).flatten().tolist() == [0, 0, 128, 255, 255]


def features_of(seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (30, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Means().extract(images)


def test_metrics_are_computed_for_each_seed_on_its_own():
    reference = features_of(9)
    measured = measure((features_of(seed) for seed in (0, 1)), Real(reference), [FrechetDistance()])
    assert measured["fid"] == [
        pytest.approx(frechet_distance(features_of(seed).pool, reference.pool).item())
        for seed in (0, 1)
    ]
