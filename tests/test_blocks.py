import copy
from collections.abc import Callable

import pytest
import test_families_flux
import torch
from conftest import split
from family_contract import randomized
from torch import nn

from ditprune.blocks import calibrate_blocks
from ditprune.calibration import LogDecrease, Observation, calibrate
from ditprune.families import Batch, DiT, Flux, Table
from ditprune.layers import target_weights
from ditprune.targets import Role

OBSERVATION = Observation(2, with_gram=True)


def whole(model, batches):
    return calibrate(model, batches, DiT(), target_weights(model, DiT()), OBSERVATION)


def by_block(model, batches, **options):
    weights = target_weights(model, DiT())
    return calibrate_blocks(model, batches, DiT(), weights, OBSERVATION, **options)


def test_block_by_block_is_the_same_as_all_at_once_to_the_bit(tiny_dit, calibration):
    expected = whole(tiny_dit, [calibration])
    seen = {t: s for stats in by_block(tiny_dit, [calibration]) for t, s in stats.items()}
    assert list(seen) == list(expected)
    for target, stats in seen.items():
        assert torch.equal(stats.pack(), expected[target].pack())


def test_the_batch_size_changes_no_bit(tiny_dit, calibration):
    one, other = by_block(tiny_dit, [calibration]), by_block(tiny_dit, split(calibration, 5))
    for stats, others in zip(one, other, strict=True):
        for target in stats:
            assert torch.equal(stats[target].pack(), others[target].pack())


def test_one_block_is_in_memory_at_a_time(tiny_dit, calibration):
    for index, stats in enumerate(by_block(tiny_dit, [calibration])):
        assert {target.block for target in stats} == {index}


@pytest.mark.parametrize("follow", ["dense", "pruned"])
def test_only_if_the_pruned_model_is_followed_does_a_change_flow_on(tiny_dit, calibration, follow):
    dense = whole(tiny_dit, [calibration])
    num_changed = 0
    for seen in by_block(tiny_dit, [calibration], follow=follow):
        now = whole(tiny_dit, [calibration])
        for target, stats in seen.items():
            expected = (dense if follow == "dense" else now)[target]
            assert torch.equal(stats.pack(), expected.pack())
            num_changed += not torch.equal(dense[target].pack(), now[target].pack())
            tiny_dit.get_submodule(target.name).weight.data.mul_(0.5)
    assert num_changed > 4, "the changes must matter, or this test shows nothing"


def test_the_dense_models_inputs_are_followed_beside_the_pruned_ones(tiny_dit, calibration):
    dense_model = copy.deepcopy(tiny_dit)
    predict = DiT().predict
    for seen in by_block(tiny_dit, [calibration], follow="both"):
        for target, stats in seen.items():
            dense, pruned = [], []
            for model, inputs in ((dense_model, dense), (tiny_dit, pruned)):
                layer = model.get_submodule(target.name)
                handle = layer.register_forward_pre_hook(
                    lambda _, args, inputs=inputs: inputs.append(args[0].detach().double())
                )
                predict(model, calibration)
                handle.remove()
            d, x = (each[0].reshape(-1, each[0].shape[-1]) for each in (dense, pruned))
            assert torch.allclose(stats.cross, d.T @ x, rtol=1e-4, atol=1e-3)
            assert torch.allclose(stats.gram, x.T @ x, rtol=1e-4, atol=1e-3)
            assert torch.allclose(stats.dense_sum, d.sum(0), rtol=1e-4, atol=1e-3)
            tiny_dit.get_submodule(target.name).weight.data.mul_(0.5)


def test_layers_of_one_input_come_together_in_the_order_of_their_calls(tiny_dit, calibration):
    walk = by_block(tiny_dit, [calibration], follow="pruned")
    roles = [[target.role.value for target in stats] for stats in walk]
    one_block = [["modulation"], ["attn_q", "attn_k", "attn_v"], ["attn_out"]]
    assert roles == [*one_block, ["mlp_up"], ["mlp_down"]] * 2


def test_blocks_before_and_after_do_not_run(tiny_dit, calibration):
    calls = []
    for index, block in enumerate(tiny_dit.transformer_blocks):
        block.ff.register_forward_hook(lambda *_, index=index: calls.append(index))
    walk = by_block(tiny_dit, [calibration])
    next(walk)
    calls.clear()
    next(walk)
    assert calls == [1] * 12


def test_blocks_behind_do_not_run_for_the_sake_of_the_other_guidance_branch():
    contract, calls = test_families_flux.TestFlux(), []
    model = randomized(contract.build())
    level = torch.tensor([0.1, 0.7])
    batch = Batch(contract.latents(), level * 1000, contract.condition(), level)
    weights = target_weights(model, Flux())
    walk = calibrate_blocks(model, [batch], Flux(), weights)
    next(walk)
    for block in model.single_transformer_blocks:
        block.proj_out.register_forward_hook(lambda *_: calls.append(1))
    next(walk)
    assert not calls


def test_the_model_is_left_as_it_was(tiny_dit, calibration):
    tiny_dit.train()
    before = copy.deepcopy(tiny_dit.state_dict())
    for _ in by_block(tiny_dit, [calibration], follow="both"):
        pass
    assert all(torch.equal(v, before[name]) for name, v in tiny_dit.state_dict().items())
    assert tiny_dit.training
    assert not any("forward" in vars(module) for module in tiny_dit.modules())
    assert not any(module._forward_hooks for module in tiny_dit.modules())


class Tower(nn.Module):
    """Two linear blocks, called in an order and with connections that a subclass decides."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))


class Skipping(Tower):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.blocks[0](x)
        return self.blocks[2](self.blocks[1](first)) + self.blocks[2](first)


class SkippingIntoTheMiddle(Tower):
    """The last block hears the one before it alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, other = self.blocks[0](x), self.blocks[1](x)
        return self.blocks[2](self.blocks[3](first + other))

    def __init__(self) -> None:
        super().__init__()
        self.blocks.append(nn.Sequential(nn.Linear(4, 4)))


class Narrowing(Tower):
    """A skip connection of another shape than what the last block says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.blocks[0](x)
        return self.blocks[2](first + self.blocks[1](first[..., :2]).repeat(1, 1, 1, 2))

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1] = nn.Sequential(nn.Linear(2, 2))


class TwoLists(Tower):
    """Two lists of blocks side by side, and one that hears the last of both."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = self.blocks[:2], copy.deepcopy(self.blocks[:2])
        self.joint = copy.deepcopy(self.blocks[:2])
        del self.blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        text = self.text[1](self.text[0](x.flip(-1)))
        image = self.image[1](self.image[0](x))
        return self.joint[1](self.joint[0](text - 2 * image))


class Backwards(Tower):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](self.blocks[1](self.blocks[2](x)))


def run(model: nn.Module, calibration: Batch, walk: Callable, **options):
    family = Table(
        table={r"(?P<block>\w+\.\d+)\.0": Role.MLP_UP},
        call=lambda model, batch: model(batch.latents[..., :4]),
    )
    weights = target_weights(model, family)
    return walk(model, [calibration], family, weights, OBSERVATION, **options)


@pytest.mark.parametrize("kind", [Skipping, SkippingIntoTheMiddle, Narrowing, Backwards, TwoLists])
def test_models_that_are_no_plain_chain_are_calibrated_as_rightly(kind, calibration):
    torch.manual_seed(0)
    model = kind().eval()
    expected = run(model, calibration, calibrate)
    seen = {}
    for stats in run(model, calibration, calibrate_blocks, follow="pruned"):
        seen.update(stats)
    for target, stats in expected.items():
        assert torch.equal(stats.pack(), seen[target].pack())


def test_what_each_list_of_blocks_said_last_is_repeated(calibration):
    """So the dense model can be followed, and no block runs twice for the same statistics."""
    model = TwoLists().eval()
    walk = run(model, calibration, calibrate_blocks, follow="both")
    next(walk)
    calls = []
    for name in ("text", "image", "joint"):
        for block in getattr(model, name):
            block[0].register_forward_hook(lambda *_, name=name: calls.append(name))
    blocks = [next(iter(stats)).block_name for stats in walk]
    assert blocks == ["text.1", "image.0", "image.1", "joint.0", "joint.1"]
    assert calls[-2 * 12 :] == ["joint"] * 24


def test_one_text_for_the_cross_attentions_of_all_blocks_is_counted_block_by_block(calibration):
    class Crossed(Tower):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + sum(block(x) for block in self.blocks)

    walk = list(run(Crossed().eval(), calibration, calibrate_blocks))
    assert [[target.block for target in stats] for stats in walk] == [[0], [1], [2]]


def test_blocks_come_in_the_order_in_which_the_model_calls_them(calibration):
    walk = run(Backwards().eval(), calibration, calibrate_blocks)
    assert [next(iter(stats)).block for stats in walk] == [2, 1, 0]


def test_a_block_that_is_never_called_is_named(calibration):
    class Forgetful(Tower):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks[0](self.blocks[2](x))

    with pytest.raises(ValueError, match=r"never calls blocks\.1 as a module"):
        next(run(Forgetful().eval(), calibration, calibrate_blocks))


def test_no_samples_is_an_error(tiny_dit):
    with pytest.raises(ValueError, match="calibration set is empty"):
        next(by_block(tiny_dit, []))


def test_timestep_weights_scale_the_gram_matrix_and_the_energies_alike(tiny_dit, calibration):
    weights = target_weights(tiny_dit, DiT())
    weighting = LogDecrease(25)
    weighted = calibrate(
        tiny_dit, [calibration], DiT(), weights, Observation(1, weighting, with_gram=True)
    )
    target = next(iter(weights))
    parts = [calibration.sample(i) for i in range(12)]
    alone = [
        calibrate(tiny_dit, [part], DiT(), weights, Observation(1, with_gram=True))[target]
        for part in parts
    ]
    factors = [weighting.at(part.noise_level.item()) for part in parts]
    assert factors == sorted(factors)
    assert factors[0] == pytest.approx(0.8, abs=1 / 512)
    moment = sum(f * s.gram for f, s in zip(factors, alone, strict=True)) / (2 * sum(factors))
    assert torch.allclose(weighted[target].second_moment(), moment)
    assert torch.allclose(weighted[target].energy(), moment.diagonal())


def test_the_weights_of_obs_diff_rise_from_the_last_step_to_the_first():
    weights = LogDecrease(25)
    expected = 0.8 + 0.4 * torch.log(torch.arange(1.0, 26)) / torch.log(torch.tensor(25.0))
    got = torch.tensor([weights.at(step / 24) for step in range(25)])
    assert torch.allclose(got, expected, atol=1 / 256)


def test_skip_connections_cannot_be_followed_beside_the_dense_model(calibration):
    with pytest.raises(ValueError, match=r"skip connections.*use follow='pruned'"):
        next(run(Skipping().eval(), calibration, calibrate_blocks, follow="both"))
