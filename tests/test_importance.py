import copy
import itertools
from contextlib import contextmanager

import pytest
import torch
from conftest import split
from diffusers import DPMSolverMultistepScheduler

from ditprune.families import DiT
from ditprune.importance import TrajectoryImportance, per_token
from ditprune.pipeline import target_weights
from ditprune.sampling import draw_noise, sample_generator, sample_latents
from ditprune.targets import Role

MEASURE = TrajectoryImportance(guidance_scale=2.0, num_trajectories=3, num_steps=4)


def measured(model, batches, scheduler, **changes) -> dict:
    weights = target_weights(model, DiT())
    options = TrajectoryImportance(**{**vars(MEASURE), **changes})
    return options.measure(model, batches, DiT(), weights, scheduler, 5)


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
        draw_noise(
            (1, 8, 8), [sample_generator(MEASURE.seed, 0, f"importance {name}")]
        ).double()
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
        assert found.outputs[channel, channel].item() == pytest.approx(expected, rel=1e-3)


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
        assert torch.allclose(importance.outputs, importance.outputs.T)
        assert torch.linalg.eigvalsh(importance.outputs).min() > -1e-6 * importance.outputs.max()


def test_every_layer_has_one_even_those_that_see_no_latents(tiny_dit, calibration, scheduler):
    tiny_dit.requires_grad_(False)
    found = measured(tiny_dit, [calibration], scheduler)
    modulation = [i for t, i in found.items() if t.role is Role.MODULATION]
    assert all(importance.outputs.diagonal().max() > 0 for importance in modulation)


def test_frozen_or_not_is_the_same_and_no_gradient_is_left(tiny_dit, calibration, scheduler):
    frozen = copy.deepcopy(tiny_dit).requires_grad_(False)
    one, other = (measured(m, [calibration], scheduler) for m in (tiny_dit, frozen))
    for first, second in zip(one.values(), other.values(), strict=True):
        assert torch.allclose(first.outputs, second.outputs, rtol=1e-5)
    assert all(parameter.grad is None for parameter in tiny_dit.parameters())


def test_the_batch_size_of_the_samples_changes_no_bit(tiny_dit, calibration, scheduler):
    one = measured(tiny_dit, [calibration], scheduler)
    other = measured(tiny_dit, split(calibration, 5), scheduler)
    for target in one:
        assert torch.equal(one[target].outputs, other[target].outputs)
        assert torch.equal(one[target].tokens, other[target].tokens)


def test_queries_keys_and_values_weigh_their_common_input_alike(tiny_dit, calibration, scheduler):
    found = measured(tiny_dit, [calibration], scheduler)
    tokens = {
        t.role: i.tokens for t, i in found.items() if t.block == 0 and t.role is not Role.MLP_UP
    }
    assert torch.equal(tokens[Role.ATTN_Q], tokens[Role.ATTN_K])
    assert torch.equal(tokens[Role.ATTN_Q], tokens[Role.ATTN_V])
    assert not torch.equal(tokens[Role.ATTN_Q], tokens[Role.ATTN_OUT])


def test_without_guidance_the_unconditional_branch_does_not_matter(
    tiny_dit, calibration, scheduler
):
    found = measured(tiny_dit, [calibration], scheduler, guidance_scale=1.0)
    for importance in found.values():
        assert importance.tokens[:, 1].abs().max() == 0
        assert importance.tokens[:, 0].min() > 0


def test_a_multi_step_scheduler_is_followed_by_ddim_of_the_same_noise(
    tiny_dit, calibration, scheduler
):
    multi = DPMSolverMultistepScheduler.from_config(scheduler.config)
    one = measured(tiny_dit, [calibration], scheduler)
    other = measured(tiny_dit, [calibration], multi)
    for target in one:
        assert torch.allclose(one[target].outputs, other[target].outputs, rtol=1e-2)


def test_bins_without_a_step_lie_between_their_neighbours():
    sums = torch.tensor([[2.0, 4.0], [0.0, 0.0], [6.0, 12.0]]).double()
    counts = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]).double()
    assert torch.allclose(
        per_token(sums, counts), torch.tensor([[2.0, 4.0], [4.0, 8.0], [6.0, 12.0]]).double() / 6
    )


def test_no_samples_is_an_error(tiny_dit, scheduler):
    with pytest.raises(ValueError, match="calibration set is empty"):
        measured(tiny_dit, [], scheduler)
