import copy
import itertools
from contextlib import contextmanager

import pytest
import torch
from conftest import split
from diffusers import DDIMScheduler
from torch import nn

import ditprune
from ditprune import sensitivity as sensitivity_module
from ditprune.budget import SharedThreshold
from ditprune.families import Batch, DiT, Table
from ditprune.granularity import Layer
from ditprune.layers import target_weights
from ditprune.recipe import Recipe
from ditprune.repair import ADMM, KroneckerADMM
from ditprune.saliency import Energy
from ditprune.sensitivity import OneLayerSensitivity
from ditprune.targets import PruneTarget, Role
from ditprune.trajectory import Trajectories

MEASURE = OneLayerSensitivity(guidance_scale=2.0, num_trajectories=3, num_steps=2)


def measured(model, batches, scheduler, family=DiT(), **changes) -> dict[PruneTarget, float]:
    """What a unit of each layer's error costs; G must be that, times the identity."""
    options = OneLayerSensitivity(**{**vars(MEASURE), **changes})
    weights = target_weights(model, family)
    found = options.measure(model, batches, family, weights, scheduler)
    for target, matrix in found.items():
        eye = torch.eye(len(weights[target]), dtype=torch.float64)
        assert torch.equal(matrix, matrix[0, 0] * eye)
    return {target: matrix[0, 0].item() for target, matrix in found.items()}


class Linear(nn.Module):
    """Linear in its latents, pixel by pixel; the unconditional branch sees them twice as large."""

    def __init__(self, amplification: float = 3.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Conv2d(4, 4, 1)
        self.layer.weight.data = torch.randn(4, 4, 1, 1, generator=generator)
        self.amplification = amplification

    def forward(self, latents):
        return self.amplification * self.layer(latents)


class Guided(Table):
    def predict(self, model, batch):
        return torch.stack([model(batch.latents), model(2 * batch.latents)])


@pytest.fixture
def linear_scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)


@pytest.fixture
def pixels() -> Batch:
    """Two samples of four channels and nine pixels."""
    return Batch(torch.zeros(2, 4, 3, 3), torch.zeros(2), torch.zeros(2).long(), torch.zeros(2))


def plain() -> Table:
    return Table(
        table={"(?P<block>layer)": Role.MLP_UP}, call=lambda model, batch: model(batch.latents)
    )


def one_step(scheduler) -> float:
    """d x_0 / d epsilon of DDIM's only step: -sqrt(1 - a) / sqrt(a)."""
    scheduler.set_timesteps(1)
    a = scheduler.alphas_cumprod[scheduler.timesteps[0]].item()
    return -((1 - a) ** 0.5) / a**0.5


def test_it_is_the_squared_distance_of_the_images_for_a_unit_of_error_of_every_token(
    linear_scheduler, pixels
):
    """An error e of each of 9 pixels moves each by 3 c e: their sum of squares is 9 * 9 c^2 e^2."""
    found = measured(Linear(), [pixels], linear_scheduler, plain(), num_trajectories=1, num_steps=1)
    expected = 9 * 9 * one_step(linear_scheduler) ** 2
    assert list(found.values()) == [pytest.approx(expected, rel=1e-4)]


def test_the_error_is_that_of_all_branches_and_the_images_are_guided(linear_scheduler, pixels):
    """Errors e and 2 e: their mean square is 5/2 e^2; guidance of 3 makes 2e + 3 (e - 2e) = -e."""
    found = measured(
        Linear(1.0),
        [pixels],
        linear_scheduler,
        Guided(table={"(?P<block>layer)": Role.MLP_UP}),
        num_trajectories=1,
        num_steps=1,
        guidance_scale=3.0,
    )
    expected = 9 * one_step(linear_scheduler) ** 2 / 2.5
    assert list(found.values()) == [pytest.approx(expected, rel=1e-4)]


def test_where_everything_is_linear_it_does_not_matter_how_much_is_pruned(linear_scheduler, pixels):
    options = {"num_trajectories": 1, "num_steps": 1}
    little, much = (
        measured(Linear(), [pixels], linear_scheduler, plain(), sparsity=sparsity, **options)
        for sparsity in (0.2, 0.8)
    )
    assert list(little.values()) == pytest.approx(list(much.values()), rel=1e-4)


def test_a_layer_that_nothing_listens_to_costs_nothing(tiny_dit, calibration, scheduler):
    """What follows the last block's MLP_UP is zero: and, being zero, loses nothing either."""
    tiny_dit.transformer_blocks[1].ff.net[2].weight.data.zero_()
    found = measured(tiny_dit, [calibration], scheduler)
    silent = {t.name for t, cost in found.items() if cost == 0.0}
    assert silent == {f"transformer_blocks.1.ff.net.{name}" for name in ("0.proj", "2")}


def test_a_trajectory_that_goes_elsewhere_does_not_decide_alone(
    tiny_dit, calibration, scheduler, monkeypatch
):
    before = measured(tiny_dit, [calibration], scheduler, num_trajectories=5)
    images = Trajectories.images

    def louder(self):
        return images(self) * torch.tensor([1e3, 1.0, 1.0, 1.0, 1.0]).view(5, 1, 1, 1)

    monkeypatch.setattr(Trajectories, "images", louder)
    after = measured(tiny_dit, [calibration], scheduler, num_trajectories=5)
    assert all(before[t] <= after[t] < 100 * before[t] for t in before)


def test_the_model_is_as_it_was_to_the_bit(tiny_dit, calibration, scheduler):
    before = copy.deepcopy(tiny_dit.state_dict())
    tiny_dit.train()
    measured(tiny_dit, [calibration], scheduler)
    assert all(torch.equal(value, before[name]) for name, value in tiny_dit.state_dict().items())
    assert all(module.training for module in tiny_dit.modules())
    assert not any(module._forward_pre_hooks for module in tiny_dit.modules())


@contextmanager
def failing(model, call):
    """Raise an error in one of the model's calls."""
    calls = itertools.count()

    def fail(module, args):
        if next(calls) == call:
            raise RuntimeError("out of memory")

    handle = model.register_forward_pre_hook(fail)
    yield
    handle.remove()


@pytest.mark.parametrize("call", [1, 2, 15])
def test_the_model_is_as_it_was_after_an_error_too(tiny_dit, calibration, scheduler, call):
    """Two calls sample with all layers dense, and then two with each of 14 layers pruned."""
    before = copy.deepcopy(tiny_dit.state_dict())
    with failing(tiny_dit, call), pytest.raises(RuntimeError, match="out of memory"):
        measured(tiny_dit, [calibration], scheduler)
    assert all(torch.equal(value, before[name]) for name, value in tiny_dit.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in tiny_dit.modules())


def test_only_one_layer_is_pruned_at_a_time(tiny_dit, calibration, scheduler):
    seen, dense = [], copy.deepcopy(tiny_dit.state_dict())

    def look(module, args):
        seen.append(
            [n for n, value in module.state_dict().items() if not torch.equal(value, dense[n])]
        )

    tiny_dit.register_forward_pre_hook(look)
    names = [f"{target.name}.weight" for target in measured(tiny_dit, [calibration], scheduler)]
    assert seen == [[], [], *([name] for name in names for _ in range(2))]


def test_the_batch_size_of_the_samples_changes_no_bit(tiny_dit, calibration, scheduler):
    one = measured(tiny_dit, [calibration], scheduler)
    assert measured(tiny_dit, split(calibration, 5), scheduler) == one
    assert measured(tiny_dit, [calibration], scheduler, seed=1) != one


def test_ranks_share_the_layers_and_add_up_to_one_process_to_the_bit(
    tiny_dit, calibration, scheduler, monkeypatch
):
    alone = measured(tiny_dit, [calibration], scheduler)
    shares = []
    for rank in range(3):

        def share(items, rank=rank):
            return itertools.islice(items, rank, None, 3)

        monkeypatch.setattr(sensitivity_module, "share_of_rank", share)
        shares.append(measured(tiny_dit, [calibration], scheduler))
    assert [sum(cost > 0 for cost in found.values()) for found in shares] == [5, 5, 4]
    assert {t: sum(found[t] for found in shares) for t in alone} == alone


@pytest.mark.parametrize("repair", [ADMM(max_iterations=3), KroneckerADMM(max_iterations=3)])
def test_it_decides_how_much_each_layer_gives(tiny_dit, calibration, scheduler, repair):
    def pruned(importance):
        model = copy.deepcopy(tiny_dit)
        recipe = Recipe(
            Energy(1.0, 1.0),
            Layer(),
            budget=SharedThreshold(max_iterations=3),
            repair=repair,
            importance=importance,
        )
        masks = ditprune.prune(
            model, [calibration], family=DiT(), recipe=recipe, scheduler=scheduler
        ).masks
        assert masks.sparsity() == 0.5
        return [int(mask.sum()) for mask in masks.masks.values()]

    assert pruned(MEASURE) != pruned(None)


def test_a_model_in_bfloat16_is_measured(tiny_dit, calibration, scheduler):
    found = measured(tiny_dit.bfloat16(), [calibration], scheduler)
    assert all(cost > 0 for cost in found.values())


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_a_layer_is_neither_left_whole_nor_taken_away(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \(0, 1\)"):
        OneLayerSensitivity(sparsity=sparsity)


def test_no_samples_is_an_error(tiny_dit, scheduler):
    with pytest.raises(ValueError, match="calibration set is empty"):
        measured(tiny_dit, [], scheduler)
