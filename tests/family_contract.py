"""Laws of every family, on a small model of the real class; its test class inherits them."""

import copy
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

import ditprune
from ditprune.blocks import calibrate_blocks
from ditprune.calibration import Observation, calibrate
from ditprune.families import Batch, Conditional, Family
from ditprune.families.base import is_prunable
from ditprune.families.conditional import NULL
from ditprune.granularity import Layer
from ditprune.importance import TrajectoryImportance
from ditprune.layers import target_weights
from ditprune.pipeline import observe
from ditprune.recipe import Recipe
from ditprune.repair import LeastSquares
from ditprune.saliency import Energy
from ditprune.targets import PruneTarget, Role

OBSERVATION = Observation(with_gram=True)
TIMESTEPS = torch.tensor([100, 700])


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomized(model: nn.Module) -> nn.Module:
    """Weights that do something: several of these models begin with zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval().requires_grad_(False)


def inside(target: PruneTarget) -> str:
    return target.name.removeprefix(f"{target.block_name}.")


class Anatomy(NamedTuple):
    """What a family must find in the small model."""

    roles: Mapping[Role, set[str]]
    """The targets' names inside their blocks."""
    outside: set[str]
    """What holds the layers outside of all blocks."""
    blocks: list[str]
    """In the order of their numbers."""
    protected: AbstractSet[str] = frozenset()
    """Layers inside of blocks that stay dense."""
    heads: AbstractSet[int] = frozenset({2})
    unheard: AbstractSet[str] = frozenset()
    """Layers whose outputs no image hears of, since the text ends with the last block."""
    closed: bool = True
    """Whether blocks hear only what each list of them said last."""


class FamilyContract:
    family: Family
    anatomy: Anatomy

    def build(self) -> nn.Module:
        raise NotImplementedError

    def latents(self) -> Tensor:
        raise NotImplementedError

    def condition(self) -> dict[str, Tensor]:
        """Of two samples, with null twins of some."""
        raise NotImplementedError

    def by_hand(self, model: Any, latents: Tensor, timestep: Tensor, c: Mapping[str, Tensor]):
        """What the scheduler is given, for one branch, by calling the model as pipelines do."""
        raise NotImplementedError

    @pytest.fixture
    def model(self) -> nn.Module:
        return randomized(self.build())

    @pytest.fixture
    def batch(self) -> Batch:
        return Batch(self.latents(), TIMESTEPS, self.condition(), TIMESTEPS / 1000)

    @pytest.fixture
    def one(self, batch) -> list[Batch]:
        """One sample, of one branch: what takes long takes it."""
        return [batch._replace(condition=self.given()).sample(0)]

    def given(self) -> dict[str, Tensor]:
        return {k: x for k, x in self.condition().items() if not k.startswith(NULL)}

    def test_every_layer_has_its_role(self, model):
        found: dict[Role, set[str]] = {}
        for target in self.family.targets(model):
            found.setdefault(target.role, set()).add(inside(target))
        assert found == self.anatomy.roles

    def test_every_layer_of_a_block_is_a_target_or_protected_by_name(self, model):
        targets = self.family.targets(model)
        names = {target.name for target in targets}
        spared = {
            name.removeprefix(f"{block}.")
            for block in {target.block_name for target in targets}
            for name, layer in model.named_modules()
            if is_prunable(layer) and name.startswith(f"{block}.") and name not in names
        }
        assert spared == self.anatomy.protected

    def test_embedders_and_the_final_layers_stay_dense(self, model):
        blocks = tuple(f"{target.block_name}." for target in self.family.targets(model))
        dense = {
            name.split(".")[0]
            for name, layer in model.named_modules()
            if is_prunable(layer) and not name.startswith(blocks)
        }
        assert dense == self.anatomy.outside

    def test_blocks_are_numbered_through_and_know_their_modules(self, model):
        numbered = dict.fromkeys((t.block, t.block_name) for t in self.family.targets(model))
        assert list(numbered) == list(enumerate(self.anatomy.blocks))

    def test_targets_know_the_heads_of_their_attention(self, model):
        assert {target.num_heads for target in self.family.targets(model)} == self.anatomy.heads

    def test_it_predicts_as_the_model_called_by_hand_does_for_both_branches(self, model, batch):
        null = {k.removeprefix(NULL): x for k, x in self.condition().items() if k.startswith(NULL)}
        predicted = self.family.predict(model, batch)
        expected = [
            self.by_hand(model, batch.latents, TIMESTEPS, branch)
            for branch in (self.given(), {**self.given(), **null})
        ]
        assert torch.allclose(predicted, torch.stack(expected), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(predicted[0], predicted[1], rtol=1e-2, atol=1e-3)

    def test_what_a_call_hears_is_the_condition_it_was_made_of(self, model, batch):
        if not isinstance(self.family, Conditional):
            pytest.skip("labels")
        given = batch._replace(condition=self.given())
        latents, heard = self.family.heard(self.family.arguments(model, given))
        again = given._replace(latents=latents, condition=heard)
        assert heard.keys() <= given.condition.keys() | {"cap_mask", "encoder_hidden_states_mask"}
        assert torch.equal(self.family.predict(model, again), self.family.predict(model, given))

    def test_without_null_tensors_there_is_one_branch(self, model, batch):
        alone = self.family.predict(model, batch._replace(condition=self.given()))
        assert torch.equal(alone, self.family.predict(model, batch)[:1])

    def test_pruning_reaches_every_target_and_zeroes_exactly_half_of_it(self, model, batch):
        dense = copy.deepcopy(model)
        recipe = Recipe(Energy(), Layer(), 0.5)
        ditprune.prune(model, [batch], family=self.family, recipe=recipe)
        names = {target.name for target in self.family.targets(model)}
        for name, layer in model.named_modules():
            if name in names:
                assert int((layer.weight == 0).sum()) == layer.weight.numel() // 2
            elif is_prunable(layer):
                assert torch.equal(layer.weight, dense.get_submodule(name).weight)

    def test_block_by_block_is_the_same_as_all_at_once(self, model, batch):
        weights = target_weights(model, self.family)
        expected = calibrate(model, [batch], self.family, weights, OBSERVATION)
        walk = calibrate_blocks(model, [batch], self.family, weights, OBSERVATION)
        seen = {target: s for stats in walk for target, s in stats.items()}
        assert seen.keys() == expected.keys()
        for target, stats in seen.items():
            assert torch.equal(stats.pack(), expected[target].pack()), target.name

    def test_what_is_done_to_a_layer_flows_on_if_the_pruned_model_is_followed(self, model, one):
        weights = target_weights(model, self.family)
        walk = calibrate_blocks(model, one, self.family, weights, follow="pruned")
        for seen in walk:
            asked = {target: weights[target] for target in seen}
            now = calibrate(model, one, self.family, asked)
            for target, stats in seen.items():
                assert torch.equal(stats.pack(), now[target].pack()), target.name
                model.get_submodule(target.name).weight.data.mul_(0.5)

    def test_the_dense_model_is_followed_beside_it_where_blocks_are_a_chain(self, model, one):
        weights = target_weights(model, self.family)
        walk = calibrate_blocks(model, one, self.family, weights, OBSERVATION, follow="both")
        if self.anatomy.closed:
            assert {target for stats in walk for target in stats} == set(weights)
        else:
            with pytest.raises(ValueError, match="skip connections"):
                next(walk)


class RepairedFamilyContract(FamilyContract):
    def test_every_layer_is_repaired_block_by_block(self, model, one):
        recipe = Recipe(Energy(), Layer(), 0.5, repair=LeastSquares(), sequential=True)
        outcome = ditprune.prune(model, one, family=self.family, recipe=recipe)
        assert outcome.errors.keys() == set(self.family.targets(model))
        assert outcome.masks.violations(model) == []
        assert outcome.masks.sparsity() == 0.5
        for target, errors in outcome.errors.items():
            assert errors.repaired <= errors.masked, target.name
        gain = [e.masked - e.repaired for e in outcome.errors.values()]
        assert sum(gain) > 0.1 * sum(e.masked for e in outcome.errors.values())

    def test_what_errors_do_to_the_images_is_measured_for_every_layer(self, model, one):
        importance = TrajectoryImportance(num_trajectories=1, num_steps=2)
        recipe = Recipe(Energy(), Layer(), 0.5, importance=importance)
        weights = target_weights(model, self.family)
        seen = observe(model, one, self.family, weights, recipe, DDIMScheduler())
        assert seen.importance.keys() == weights.keys()
        for target, moment in seen.importance.items():
            assert moment.shape == (len(weights[target]),) * 2
            assert bool(moment.trace() > 0) is (target.name not in self.anatomy.unheard), (
                target.name
            )
