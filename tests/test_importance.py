import copy
import itertools
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import split
from diffusers import DPMSolverMultistepScheduler

from ditprune.families import DiT
from ditprune.importance import TrajectoryImportance, in_image_units
from ditprune.layers import target_weights
from ditprune.sampling import draw_noise, sample_generator, sample_latents
from ditprune.targets import PruneTarget, Role
from ditprune.trajectory import Trajectories

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


def test_how_trajectories_are_split_over_ranks_changes_no_bit(
    tiny_dit, calibration, scheduler, monkeypatch
):
    options = {"num_trajectories": 64, "num_steps": 2}  # four chunks; divided by 64 exactly
    whole = measured(tiny_dit, [calibration], scheduler, **options)
    shares = []
    for rank in (0, 1):
        share = lambda chunks, rank=rank: list(chunks)[rank::2]  # noqa: E731
        monkeypatch.setattr("ditprune.importance.share_of_rank", share)
        shares.append(measured(tiny_dit, [calibration], scheduler, **options))
    assert all(torch.equal(shares[0][t] + shares[1][t], whole[t]) for t in whole)


def test_every_trajectory_counts_alike(tiny_dit, calibration, scheduler, monkeypatch):
    """One that is a thousand times as sensitive as the others does not decide alone."""
    dense = measured(tiny_dit, [calibration], scheduler)
    draw = Trajectories.noise

    def louder(self, ids, stream="start"):
        loudness = [1e3, 1.0, 1.0] if stream == "direction" else [1.0, 1.0, 1.0]
        return draw(self, ids, stream) * torch.tensor(loudness).view(3, 1, 1, 1)

    monkeypatch.setattr(Trajectories, "noise", louder)
    for target, importance in measured(tiny_dit, [calibration], scheduler).items():
        atol = 1e-6 * importance.max().item()
        assert torch.allclose(importance, dense[target], rtol=1e-3, atol=atol)


def test_a_multi_step_scheduler_is_followed_by_ddim_of_the_same_noise(
    tiny_dit, calibration, scheduler
):
    multi = DPMSolverMultistepScheduler.from_config(scheduler.config)
    one = measured(tiny_dit, [calibration], scheduler)
    other = measured(tiny_dit, [calibration], multi)
    for target in one:
        assert torch.allclose(one[target], other[target], rtol=1e-2)


def test_outputs_that_no_image_hears_are_worth_nothing_and_change_nothing_for_others(
    tiny_dit, calibration, scheduler
):
    """The last text stream of some models; here what the last MLP says is multiplied by zero."""
    mlp = tiny_dit.transformer_blocks[1].ff
    expected = measured(tiny_dit, [calibration], scheduler, num_trajectories=1)
    inner = mlp.forward
    mlp.forward = lambda *args, **kwargs: torch.zeros_like(inner(*args, **kwargs))
    found = measured(tiny_dit, [calibration], scheduler, num_trajectories=1)
    silent = {t for t, matrix in found.items() if not matrix.any()}
    assert {t.name for t in silent} == {
        f"transformer_blocks.1.ff.net.{part}" for part in ("0.proj", "2")
    }
    traces = {t: found[t].trace().item() for t in found if t not in silent}
    # Each trajectory counts as one: the geometric mean over the layers that are heard.
    mean = torch.tensor(list(traces.values())).log().mean().exp().item()
    assert mean == pytest.approx(1.0, rel=1e-3)
    assert expected.keys() == found.keys()


def test_no_samples_is_an_error(tiny_dit, scheduler):
    with pytest.raises(ValueError, match="calibration set is empty"):
        measured(tiny_dit, [], scheduler)


def layers(*names: str) -> list[PruneTarget]:
    return [PruneTarget(name, Role.MLP_UP, block=0, num_heads=1) for name in names]


def some_weights() -> dict[PruneTarget, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {target: torch.randn(4, 6, generator=generator) for target in layers("a", "b")}


def worth(*diagonal: float) -> torch.Tensor:
    """A matrix of that diagonal; what is beside it must not matter."""
    matrix = torch.full((len(diagonal),) * 2, 0.5, dtype=torch.float64)
    return matrix.diagonal_scatter(torch.tensor(diagonal, dtype=torch.float64))


def test_in_image_units_rows_are_scaled_by_what_their_outputs_are_worth():
    weights, (a, b) = some_weights(), layers("a", "b")
    importance = {a: worth(4.0, 9.0, 0.25, 1.0), b: worth(1e-12, 2e-12, 3e-12, 4e-12)}
    scaled = in_image_units(weights, importance)
    assert list(scaled) == [a, b]
    assert len(scaled) == 2
    for target in scaled:
        rows = np.sqrt(np.diag(importance[target].numpy()))
        expected = weights[target].numpy() * rows[:, None]
        assert np.allclose(scaled[target].numpy(), expected, rtol=1e-5, atol=0)


def test_an_output_worth_nothing_gets_a_ten_thousandth_of_the_mean():
    a, b = layers("a", "b")
    scaled = in_image_units(some_weights(), {a: worth(0.0, 8.0, 0.0, 8.0), b: worth(1, 1, 1, 1)})
    expected = some_weights()[a] * torch.tensor([0.02, 8**0.5, 0.02, 8**0.5]).unsqueeze(1)
    assert torch.allclose(scaled[a], expected, rtol=1e-5)


def test_weights_in_image_units_are_float32_and_the_models_stay_as_they_were():
    a, b = layers("a", "b")
    weights = {target: weight.bfloat16() for target, weight in some_weights().items()}
    scaled = in_image_units(weights, {a: worth(2, 3, 4, 5), b: worth(2, 3, 4, 5)})
    assert scaled[a].dtype is torch.float32
    assert torch.equal(weights[a], some_weights()[a].bfloat16())


def test_weights_in_image_units_are_scaled_when_asked_for_and_not_kept():
    weights, (a, b) = some_weights(), layers("a", "b")
    scaled = in_image_units(weights, {a: worth(4, 4, 4, 4), b: worth(1, 1, 1, 1)})
    kept = weakref.ref(scaled[a])
    assert kept() is None
    weights[a].fill_(3.0)
    assert torch.equal(scaled[a], torch.full((4, 6), 6.0))


def test_without_importance_the_weights_are_the_very_same():
    weights = some_weights()
    assert in_image_units(weights, {}) is weights
