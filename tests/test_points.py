import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import run_processes
from tiny_pipelines import PROMPTS, STEPS, encoded, pipeline_of

from ditprune.families import SD3
from ditprune.points import TrajectoryPoints
from ditprune.sampling import denoising, draw_noise, sample_generator


@pytest.fixture
def points() -> TrajectoryPoints:
    pipeline = pipeline_of("sd3")
    found = encoded(pipeline, "sd3", guided=True)
    return TrajectoryPoints(pipeline.transformer, SD3(), found, 3.0, num_samples=7, seed=5)


def test_points_are_the_states_of_the_models_own_guided_sampling(points):
    for index, batch in enumerate(points.reach()):
        generator = sample_generator(5, index, "calibration")
        noise = draw_noise(points.encoded.latents_shape, [generator])
        prompt = {n: x[[index % len(PROMPTS)]] for n, x in points.encoded.condition.items()}
        schedule = points.encoded.scheduler
        states = list(denoising(points.model, SD3(), schedule, noise, prompt, [generator], 3.0))
        state = states[points.step(index)]
        assert torch.equal(batch.latents, state.latents)
        assert torch.equal(batch.timestep, state.timestep)
        assert torch.equal(batch.noise_level, state.noise_level)
        assert batch.condition.keys() == prompt.keys()
        assert all(torch.equal(batch.condition[name], x) for name, x in prompt.items())


def test_another_scale_of_guidance_leads_elsewhere(points):
    ours, other = points.reach(), replace(points, guidance_scale=1.0).reach()
    assert torch.equal(ours[0].latents, other[0].latents)  # noise, before the first step
    assert not torch.allclose(ours[-1].latents, other[-1].latents, atol=1e-3)


@pytest.mark.parametrize("num_samples", [STEPS, 5 * STEPS, 18])
def test_every_step_is_taken_about_equally_often_each_sample_in_its_part(points, num_samples):
    asked = replace(points, num_samples=num_samples)
    steps = [asked.step(i) for i in range(num_samples)]
    assert steps == sorted(steps)
    counts = Counter(steps)
    assert counts.keys() == set(range(STEPS))
    assert max(counts.values()) - min(counts.values()) <= 2
    if num_samples % STEPS == 0:
        assert set(counts.values()) == {num_samples // STEPS}


def test_a_sample_is_the_same_whatever_is_drawn_before_it(points):
    together = points.reach()
    alone = points.point(4)
    assert torch.equal(alone.latents, together[4].latents)


def test_samples_and_seeds_have_noise_of_their_own_and_evaluation_has_another(points):
    first = [points.point(0).latents, replace(points, seed=6).point(0).latents]
    first.append(draw_noise(points.encoded.latents_shape, [sample_generator(5, 0)]))
    first.append(replace(points, num_samples=70).point(1).latents)  # before the first step, too
    assert len({x.sum().item() for x in first}) == 4


def test_no_more_predictions_than_steps_to_go(points, monkeypatch):
    calls = []
    predict = SD3.predict
    monkeypatch.setattr(SD3, "predict", lambda *args: calls.append(1) or predict(*args))
    points.reach()
    assert len(calls) == sum(points.step(i) for i in range(points.num_samples))


PROCESS = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from safetensors.torch import save_file
sys.path.insert(0, {tests!r})
from tiny_pipelines import PROMPTS, options_of, pipeline_of
from ditprune.distributed import leave_group
from ditprune.families import SD3
from ditprune.points import TrajectoryPoints
from ditprune.prompt_cache import encode_once
rank, count, root = int(sys.argv[1]), int(sys.argv[2]), Path({root!r})
torch.set_num_threads(1)
if count > 1:
    place = f"file://{{root}}/rendezvous"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=count)
pipeline, folder = pipeline_of("sd3"), root / f"prompts-{{count}}"
found = encode_once(folder, pipeline, SD3(), PROMPTS, guided=True, **options_of("sd3"))
points = TrajectoryPoints(pipeline.transformer, SD3(), found, 3.0, num_samples=5).reach()
latents = {{str(i): batch.latents for i, batch in enumerate(points)}}
save_file(latents, root / f"{{count}}-{{rank}}.safetensors")
leave_group()
"""


@pytest.mark.slow
def test_the_number_of_processes_changes_no_bit(tmp_path):
    script = tmp_path / "points.py"
    script.write_text(PROCESS.format(tests=str(Path(__file__).parent), root=str(tmp_path)))
    for count in (1, 2):
        run_processes(script, count)
    alone, *others = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert len(alone) == 5
    for other in others:
        assert all(torch.equal(other[name], x) for name, x in alone.items())


class Ended(Exception):
    """As if somebody had ended the run."""


def test_an_ended_run_goes_on_with_the_points_it_has_not_reached(points, tmp_path, monkeypatch):
    expected = points.reach()
    kept, calls, predict = replace(points, folder=tmp_path), [], SD3.predict

    def few(*args):
        calls.append(1)
        if len(calls) == 8:
            raise Ended
        return predict(*args)

    monkeypatch.setattr(SD3, "predict", few)
    with pytest.raises(Ended):
        kept.reach()
    steps = [points.step(i) for i in range(points.num_samples)]
    done = len(list(tmp_path.rglob("*.safetensors")))
    assert sum(steps[:done]) <= 7 < sum(steps[: done + 1])
    calls[:] = [1] * 8  # count on from here
    found = kept.reach()
    assert len(calls) - 8 == sum(steps[done:])
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.latents, theirs.latents)
        assert ours.latents.dtype == theirs.latents.dtype
    calls.clear()
    next(tmp_path.rglob("5.safetensors")).write_bytes(b"damaged")
    kept.reach()
    assert len(calls) == steps[5]


def test_points_of_other_models_prompts_schedules_and_seeds_are_told_apart(points, tmp_path):
    pruned = copy.deepcopy(points)
    weight = pruned.model.transformer_blocks[0].attn.to_q.weight.data
    weight[weight.abs() < weight.abs().median()] = 0
    prompts = {name: x.flip(0) for name, x in points.encoded.condition.items()}
    schedule = copy.deepcopy(points.encoded.scheduler)
    schedule.set_timesteps(STEPS + 1)
    others = [
        points,
        copy.deepcopy(points),  # the same
        pruned,
        replace(points, encoded=replace(points.encoded, condition=prompts)),
        replace(points, encoded=replace(points.encoded, scheduler=schedule)),
        replace(points, guidance_scale=1.0),
        replace(points, num_samples=8),
        replace(points, seed=6),
    ]
    names = [replace(other, folder=tmp_path).kept() for other in others]
    assert len(set(names)) == len(names) - 1
    assert names[0] == names[1]
