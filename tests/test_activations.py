import pytest
import torch
from torch import nn

from ditprune.activations import ActivationStats, demand_finite, demand_reached, recording
from ditprune.targets import PruneTarget, Role


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def target(name: str) -> PruneTarget:
    return PruneTarget(name, Role.MLP_UP, 0, 1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.q(x) + self.k(x))


def stats_of(*names: str) -> dict[PruneTarget, ActivationStats]:
    return {target(name): ActivationStats(3) for name in names}


@pytest.mark.parametrize(
    ("shape", "num_tokens"), [((5, 3), 5), ((2, 7, 3), 14), ((2, 3, 4, 6), 48)]
)
def test_tokens_are_counted_and_not_sequences(shape, num_tokens):
    stats = ActivationStats(3)
    stats.add(draw(*shape))
    assert stats.weight.tolist() == [num_tokens]


def test_energy_is_the_mean_square_over_all_tokens_of_unequal_calls():
    short, long = draw(2, 3), draw(10, 3, seed=1) * 4
    stats = ActivationStats(3)
    stats.add(short)
    stats.add(long)
    expected = torch.cat([short, long]).double().square().mean(0)
    assert torch.allclose(stats.energy(), expected, rtol=1e-6)
    assert torch.allclose(stats.rms(), expected.sqrt(), rtol=1e-6)


def test_channels_of_a_feature_map_are_its_second_axis():
    x = torch.zeros(1, 3, 3, 3)
    x[:, 1] = 2
    stats = ActivationStats(3)
    stats.add(x)
    assert stats.energy().tolist() == [0, 4, 0]


def test_timestep_bins_are_kept_apart():
    stats = ActivationStats(3, num_timestep_bins=2)
    stats.add(torch.ones(4, 3), timestep_bin=1)
    assert stats.weight.tolist() == [0, 4]
    assert stats.sum_of_squares.tolist() == [[0, 0, 0], [4, 4, 4]]


def test_bfloat16_activations_are_summed_in_higher_precision():
    stats = ActivationStats(3)
    stats.add(torch.ones(1000, 3, dtype=torch.bfloat16))
    assert stats.sum_of_squares.tolist() == [[1000, 1000, 1000]]


def test_the_order_and_grouping_of_samples_changes_no_bit():
    samples = [draw(9, 3, seed=seed) * (1 + seed % 17) for seed in range(128)]
    forward, backward = ActivationStats(3), ActivationStats(3)
    halves = [ActivationStats(3), ActivationStats(3)]
    for index, (first, last) in enumerate(zip(samples, reversed(samples), strict=True)):
        forward.add(first)
        backward.add(last)
        halves[index % 2].add(first)
    merged = halves[0] + halves[1]
    assert torch.equal(forward.pack(), backward.pack())
    assert torch.equal(forward.pack(), merged.pack())


def test_packing_and_unpacking_is_the_identity():
    stats, copy = ActivationStats(3, 2), ActivationStats(3, 2)
    stats.add(draw(5, 3), 1)
    copy.unpack_(stats.pack())
    assert torch.equal(copy.sum_of_squares, stats.sum_of_squares)
    assert copy.weight.tolist() == [0, 5]


def test_layers_with_one_input_share_one_statistic_that_counts_it_once():
    stats = stats_of("q", "k", "out")
    x = draw(2, 4, 3)
    model = Attention()
    for _ in range(2):
        with recording(model, stats):
            model(x)
    assert stats[target("q")] is stats[target("k")]
    assert stats[target("q")] is not stats[target("out")]
    assert stats[target("k")].weight.tolist() == [16]
    assert torch.allclose(stats[target("k")].energy(), x.double().square().mean((0, 1)))


def test_an_input_of_equal_values_that_is_another_tensor_is_not_shared():
    class Cloning(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.q(x) + self.k(x.clone()))

    stats, model = stats_of("q", "k"), Cloning()
    with recording(model, stats):
        model(draw(4, 3))
    assert stats[target("q")] is not stats[target("k")]
    assert stats[target("k")].weight.tolist() == [4]


def test_sharing_that_ends_is_an_error_and_no_wrong_count():
    class Fickle(Attention):
        clone = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.q(x) + self.k(x.clone() if self.clone else x))

    stats, model = stats_of("q", "k"), Fickle()
    with recording(model, stats):
        model(draw(4, 3))
    model.clone = True
    with (
        pytest.raises(RuntimeError, match="k shares its input only in some calls"),
        recording(model, stats),
    ):
        model(draw(4, 3))


def test_hooks_are_gone_after_the_block_even_after_an_exception():
    model, stats = Attention(), stats_of("q", "k", "out")
    with pytest.raises(ZeroDivisionError), recording(model, stats):
        model(draw(4, 3))
        raise ZeroDivisionError
    model(draw(4, 3))
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert stats[target("q")].weight.tolist() == [4]


def test_a_layer_that_was_never_reached_is_named():
    model, stats = Attention(), stats_of("q", "unused")
    with recording(model, stats):
        model(draw(4, 3))
    with pytest.raises(ValueError, match="1 target layers were never reached.*: unused"):
        demand_reached(stats)


def test_activations_that_are_not_finite_are_an_error_with_the_layers_name():
    model, stats = Attention(), stats_of("q", "out")
    with recording(model, stats):
        model(torch.full((4, 3), float("nan")))
    with pytest.raises(ValueError, match="NaN or infinite activations flow into q, out"):
        demand_finite(stats)
