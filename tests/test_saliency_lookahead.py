import numpy as np
import pytest
import torch
from contracts import SaliencyContract, some_stats, some_weight

from ditprune.activations import ActivationStats
from ditprune.saliency import Lookahead, Scores
from ditprune.saliency.lookahead import BetweenNeighbours
from ditprune.targets import PruneTarget, Role


def layer(name: str, role: Role, block: int = 0) -> PruneTarget:
    return PruneTarget(f"blocks.{block}.{name}", role, block, 1, f"blocks.{block}")


UP, DOWN = layer("ff.net.0.proj", Role.MLP_UP), layer("ff.net.2", Role.MLP_DOWN)
VALUE, OUT = layer("attn1.to_v", Role.ATTN_V), layer("attn1.to_out.0", Role.ATTN_OUT)


def matrix(num_outputs: int, num_inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(seed))


def score(target: PruneTarget, weights: dict[PruneTarget, torch.Tensor]) -> torch.Tensor:
    stats = {t: ActivationStats(weight.shape[1]) for t, weight in weights.items()}
    return Scores(Lookahead(), weights, stats)[target]


def plain(weight: torch.Tensor) -> torch.Tensor:
    return weight.square()


class TestLookaheadAlone(SaliencyContract):
    saliency = Lookahead()

    def test_without_neighbours_it_is_the_square(self):
        assert torch.equal(self.saliency.score(some_weight(), some_stats()), plain(some_weight()))


class TestLookaheadBetweenNeighbours(SaliencyContract):
    saliency = BetweenNeighbours(torch.arange(6.0), torch.full((4,), 2.0))


def test_it_is_the_distortion_of_the_product_by_the_loss_of_one_weight():
    """By its definition: |after (W - W without w_ij) before|_F^2, for each weight."""
    before, weight, after = matrix(5, 3, 1), matrix(4, 5, 2), matrix(2, 4, 3)
    norms = BetweenNeighbours(before.square().sum(1), after.square().sum(0))
    score = norms.score(weight, ActivationStats(5))
    for i in range(4):
        for j in range(5):
            lost = torch.zeros(4, 5)
            lost[i, j] = weight[i, j]
            expected = (after @ lost @ before).square().sum()
            assert torch.isclose(score[i, j], expected, rtol=1e-5)


@pytest.mark.parametrize(("first", "second"), [(UP, DOWN), (VALUE, OUT)])
def test_the_two_layers_of_an_mlp_and_of_an_attention_see_each_other(first, second):
    weights = {first: matrix(8, 3), second: matrix(3, 8, 1)}
    one, two = (weight.numpy() for weight in weights.values())
    after = np.linalg.norm(two, axis=0) ** 2
    assert np.allclose(score(first, weights), one**2 * after[:, None])
    before = np.linalg.norm(one, axis=1) ** 2
    assert np.allclose(score(second, weights), two**2 * before)


def test_the_units_of_a_gated_mlp_have_two_rows_before_them():
    up, down = matrix(8, 3), matrix(3, 4, 1)
    weights = {UP: up, DOWN: down}
    before = torch.stack([up[j].square().sum() + up[4 + j].square().sum() for j in range(4)])
    assert torch.allclose(score(DOWN, weights), down.square() * before)
    after = torch.stack([down[:, i % 4].square().sum() for i in range(8)])
    assert torch.allclose(score(UP, weights), up.square() * after[:, None])


def test_what_meets_the_residual_stream_has_no_neighbours():
    query, modulation = layer("attn1.to_q", Role.ATTN_Q), layer("norm1.linear", Role.MODULATION)
    weights = {target: matrix(4, 4, i) for i, target in enumerate([modulation, query, VALUE, OUT])}
    for alone in (query, modulation):
        assert torch.equal(score(alone, weights), plain(weights[alone]))


def test_grouped_value_heads_of_another_width_do_not_count():
    weights = {VALUE: matrix(2, 8), OUT: matrix(8, 6, 1)}
    assert torch.equal(score(VALUE, weights), plain(weights[VALUE]))
    assert torch.equal(score(OUT, weights), plain(weights[OUT]))


def test_of_two_attentions_each_output_follows_its_own_values():
    names = ("attn1.to_v", "attn2.to_v", "attn2.to_out.0", "attn1.to_out.0")
    roles = (Role.ATTN_V, Role.ATTN_V, Role.ATTN_OUT, Role.ATTN_OUT)
    v1, v2, out2, out1 = map(layer, names, roles)
    weights = {target: matrix(4, 4, i) for i, target in enumerate((v1, v2, out2, out1))}
    for value, out in ((v1, out1), (v2, out2)):
        pair = {value: weights[value], out: weights[out]}
        for target in pair:
            assert torch.equal(score(target, weights), score(target, pair))
            assert not torch.equal(score(target, pair), plain(weights[target]))


def test_of_two_streams_in_one_attention_the_name_that_is_alike_the_longest_counts():
    image = [layer("attn.to_v", Role.ATTN_V), layer("attn.to_out.0", Role.ATTN_OUT)]
    text = layer("attn.add_v_proj", Role.ATTN_V)
    weights = {target: matrix(4, 4, i) for i, target in enumerate([text, *image])}
    pair = {target: weights[target] for target in image}
    assert torch.equal(score(image[1], weights), score(image[1], pair))


@pytest.mark.parametrize(
    "stranger",
    [
        layer("attn2.to_out.0", Role.ATTN_OUT),
        layer("proj", Role.ATTN_OUT),
        layer("attn1.to_out.0", Role.ATTN_OUT, block=1),
        layer("attn1.to_out.0", Role.MLP_DOWN),
    ],
)
def test_values_are_not_read_by_another_attention_block_or_role(stranger):
    weights = {VALUE: matrix(4, 4), stranger: matrix(4, 4, 1)}
    assert torch.equal(score(VALUE, weights), plain(weights[VALUE]))
    assert torch.equal(score(stranger, weights), plain(weights[stranger]))


def test_layers_that_are_no_part_of_a_part_of_their_block_are_neighbours():
    up, down = layer("fc1", Role.MLP_UP), layer("fc2", Role.MLP_DOWN)
    weights = {up: matrix(4, 4), down: matrix(4, 4, 1)}
    assert not torch.equal(score(up, weights), plain(weights[up]))
