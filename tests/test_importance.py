import copy
import itertools
from contextlib import contextmanager

import pytest
import torch
from conftest import split
from diffusers import DPMSolverMultistepScheduler

from ditprune.families import DiT
from ditprune.importance import TrajectoryImportance
from ditprune.pipeline import target_weights
from ditprune.sampling import draw_noise, sample_generator, sample_latents
from ditprune.targets import Role

MEASURE = TrajectoryImportance(guidance_scale=2.0, num_trajectories=3, num_steps=4)


def measured(model, batches, scheduler, **changes) -> dict:
    weights = target_weights(model, DiT())
    options = TrajectoryImportance(**{**vars(MEASURE), **changes})
    return options.measure(model, batches, DiT(), weights, scheduler)


def final_latents(model, calibration, scheduler, noise):
    return sample_latents(
        model, DiT(), scheduler, noise, calibration.condition[:1], [],
        num_inference_steps=2, guidance_scale=2.0,
    )  # fmt: skip


def test_it_is_the_derivative_of_the_image_by_a_constant_error_of_an_output_channel(
    tiny_dit, calibration, scheduler
):
    """Against finite differences of whole samplings, where the error is made at one step alone."""
    model = tiny_dit.double()
    target = next(t for t in target_weights(model, DiT()) if t.role is Role.MLP_DOWN)
    found = measured(model, [calibration], scheduler, num_trajectories=1, num_steps=2)[target]
    start, direction = (
        draw_noise((1, 8, 8), [sample_generator(MEASURE.seed, 0, f"importance {name}")]).double()
        for name in ("start", "direction")
    )
    epsilon = 1e-5
    dense = final_latents(model, calibration, scheduler, start)
    squares = dict.fromkeys((0, 7), 0.0)
    layer = model.get_submodule(target.name)
    for call, row, token, channel in itertools.product(range(2), range(2), range(16), squares):
        with disturbing(layer, call, (row, token, channel), epsilon):
            moved = final_latents(model, calibration, scheduler, start) - dense
        squares[channel] += ((moved * direction).sum() / epsilon).square().item()
    for channel, expected in squares.items():
        assert found[channel, channel].item() / found[0, 0].item() == pytest.approx(
            expected / squares[0], rel=1e-3
        )


@contextmanager
def disturbing(layer, call, place, epsilon):
    """Move one number of one answer of a layer."""
    calls = itertools.count()

    def disturb(module, args, output):
        if next(calls) == call:
            output = output.clone()
            output[place] += epsilon
        return output

    handle = layer.register_forward_hook(disturb)
    yield
    handle.remove()


def test_the_matrix_is_symmetric_and_has_no_negative_direction(tiny_dit, calibration, scheduler):
    for importance in measured(tiny_dit, [calibration], scheduler).values():
        assert torch.allclose(importance, importance.T)
        assert torch.linalg.eigvalsh(importance).min() > -1e-6 * importance.max()


def test_every_layer_has_one_even_those_that_see_no_latents(tiny_dit, calibration, scheduler):
    tiny_dit.requires_grad_(False)
    found = measured(tiny_dit, [calibration], scheduler)
    modulation = [i for t, i in found.items() if t.role is Role.MODULATION]
    assert all(importance.diagonal().max() > 0 for importance in modulation)


def test_frozen_or_not_is_the_same_and_no_gradient_is_left(tiny_dit, calibration, scheduler):
    frozen = copy.deepcopy(tiny_dit).requires_grad_(False)
    one, other = (measured(m, [calibration], scheduler) for m in (tiny_dit, frozen))
    for first, second in zip(one.values(), other.values(), strict=True):
        assert torch.allclose(first, second, rtol=1e-5)
    assert all(parameter.grad is None for parameter in tiny_dit.parameters())


def test_the_batch_size_of_the_samples_changes_no_bit(tiny_dit, calibration, scheduler):
    one = measured(tiny_dit, [calibration], scheduler)
    other = measured(tiny_dit, split(calibration, 5), scheduler)
    for target in one:
        assert torch.equal(one[target], other[target])


def test_every_trajectory_counts_alike(tiny_dit, calibration, scheduler, monkeypatch):
    """One that is a thousand times as sensitive as the others does not decide alone."""
    dense = measured(tiny_dit, [calibration], scheduler)
    draw = TrajectoryImportance._noise

    def louder(self, samples, ids):
        start, direction = draw(self, samples, ids)
        return [start, direction * torch.tensor([1e3, 1.0, 1.0]).view(3, 1, 1, 1)]

    monkeypatch.setattr(TrajectoryImportance, "_noise", louder)
    for target, importance in measured(tiny_dit, [calibration], scheduler).items():
        assert torch.allclose(importance, dense[target], rtol=1e-3)


def test_a_multi_step_scheduler_is_followed_by_ddim_of_the_same_noise(
    tiny_dit, calibration, scheduler
):
    multi = DPMSolverMultistepScheduler.from_config(scheduler.config)
    one = measured(tiny_dit, [calibration], scheduler)
    other = measured(tiny_dit, [calibration], multi)
    for target in one:
        assert torch.allclose(one[target], other[target], rtol=1e-2)


def test_no_samples_is_an_error(tiny_dit, scheduler):
    with pytest.raises(ValueError, match="calibration set is empty"):
        measured(tiny_dit, [], scheduler)
