"""Improved precision and recall."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch_fidelity.metric_prc import prc_features_to_metric

from ditprune.metrics import Features, PrecisionRecall, precision_recall


def cloud(num_images, seed, shift=0.0, scale=1.0):
    noise = torch.randn(num_images, 6, generator=torch.Generator().manual_seed(seed))
    return (scale * noise + shift).double()


def line(*positions):
    return torch.tensor(positions, dtype=torch.float64).unsqueeze(1)


def share_by_sklearn(points, centers, num_neighbors):
    radii = NearestNeighbors(n_neighbors=num_neighbors + 1, algorithm="brute").fit(centers)
    radii = radii.kneighbors(centers)[0][:, -1]
    gaps = (points.unsqueeze(1) - centers).square().sum(2).sqrt().numpy()
    return (gaps <= radii).any(1).mean()


def test_on_a_line_it_can_be_counted_by_hand():
    generated, reference = line(0, 1, 10, 11), line(0, 2, 4, 100)
    # Balls of reference: [-2, 2], [0, 4], [2, 6], [4, 196]: they hold 0, 1, 10, 11.
    # Balls of generated: [-1, 1], [0, 2], [9, 11], [10, 12]: they hold 0, 2, not 4 and 100.
    assert precision_recall(generated, reference, num_neighbors=1) == (1.0, 0.5)


def test_the_nearest_neighbour_of_a_point_is_not_itself():
    # With k = 1 the balls of 0, 4, 100 reach 4, 4 and 96 far, not 0.
    assert precision_recall(line(3, 50, -5), line(0, 4, 100), num_neighbors=1)[0] == 2 / 3


def test_the_surface_of_a_ball_belongs_to_it():
    # Reference balls [-1, 1], [0, 2]; 2 is on a surface, 3 is outside.
    assert precision_recall(line(2, 3), line(0, 1), num_neighbors=1)[0] == 0.5


@pytest.mark.parametrize("num_neighbors", [1, 3, 5])
def test_both_numbers_are_those_of_an_exact_search_by_sklearn(num_neighbors):
    generated, reference = cloud(90, seed=0), cloud(70, seed=1, shift=0.5, scale=1.3)
    precision, recall = precision_recall(generated, reference, num_neighbors)
    assert precision == share_by_sklearn(generated, reference, num_neighbors)
    assert recall == share_by_sklearn(reference, generated, num_neighbors)
    assert precision != recall


@pytest.mark.parametrize("save_cpu_ram", [False, True])
def test_both_numbers_are_those_of_torch_fidelity(save_cpu_ram):
    generated, reference = cloud(90, seed=2), cloud(70, seed=3, shift=0.5, scale=1.3)
    theirs = prc_features_to_metric(
        generated,
        reference,
        prc_neighborhood=3,
        prc_batch_size=32,
        save_cpu_ram=save_cpu_ram,
        verbose=False,
    )
    ours = precision_recall(generated, reference)
    assert ours == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-7)


def test_swapping_the_sets_swaps_precision_and_recall():
    narrow, wide = cloud(60, seed=4, scale=0.3), cloud(80, seed=5)
    precision, recall = precision_recall(narrow, wide)
    assert precision > recall + 0.3
    assert precision_recall(wide, narrow) == (recall, precision)


@pytest.mark.parametrize("block_size", [1, 7, 60, 1000])
def test_the_size_of_the_blocks_does_not_show(block_size):
    generated, reference = cloud(60, seed=6), cloud(45, seed=7, shift=0.5)
    expected = precision_recall(generated, reference)
    assert precision_recall(generated, reference, block_size=block_size) == expected


def test_a_set_far_from_the_origin_measures_the_same():
    generated, reference = (cloud(60, seed).mul(4).round() for seed in (8, 9))
    there = 2.0**40
    expected = precision_recall(generated, reference)
    assert 0 < expected[0] < 1
    assert precision_recall(generated + there, reference + there) == expected


def test_copies_of_one_image_shrink_their_balls_to_a_point():
    generated, reference = line(5, 5, 5, 5, 6), line(0, 5, 7, 9, 11)
    # Balls of generated: four points {5} and [5, 7]; they hold 5 and 7 of the reference.
    assert precision_recall(generated, reference)[1] == 2 / 5


def test_a_set_equal_to_its_reference_is_perfect():
    images = cloud(30, seed=10)
    assert precision_recall(images, images.clone()) == (1.0, 1.0)


def test_too_few_images_for_the_neighbours_are_refused_with_the_numbers():
    assert precision_recall(line(0, 1, 2, 3), line(0, 1, 2, 3)) == (1.0, 1.0)
    with pytest.raises(ValueError, match="at least 4 images in each set; got 3 generated and 5"):
        precision_recall(line(0, 1, 2), line(0, 1, 2, 3, 4))


def test_the_metric_tells_generated_from_reference_and_takes_its_settings():
    generated, reference = cloud(60, seed=11, scale=0.3), cloud(80, seed=12)
    metric = PrecisionRecall(num_neighbors=1, block_size=16)
    metric.update(Features(generated, generated), Features(reference, reference))
    precision, recall = precision_recall(generated, reference, num_neighbors=1)
    assert precision != recall
    assert (precision, recall) != precision_recall(generated, reference)
    assert metric.compute() == {"precision": precision, "recall": recall}


# Products in float32 must not decide anything.


def by_differences(points, centers, num_neighbors):
    """Both from the paper's definition in float64, pair by pair, without one product."""

    def distances(x, y):
        return (x.double().unsqueeze(1) - y.double()).square().sum(2).sqrt()

    radii = distances(centers, centers).sort(1).values[:, num_neighbors]
    return (distances(points, centers) <= radii).any(1).double().mean().item()


def assert_exact(generated, reference, num_neighbors=3):
    precision, recall = precision_recall(generated, reference, num_neighbors, block_size=16)
    assert precision == by_differences(generated, reference, num_neighbors)
    assert recall == by_differences(reference, generated, num_neighbors)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    width=st.sampled_from([1, 3, 40]),
    levels=st.sampled_from([2, 3, 1000]),
    step=st.sampled_from([1.0, 1e-4, 2.0**-30]),
    away=st.sampled_from([0.0, 1.0, 1000.0]),
    num_neighbors=st.sampled_from([1, 3]),
)
def test_ties_copies_and_near_copies_are_decided_as_by_differences_in_float64(
    seed, width, levels, step, away, num_neighbors
):
    """Points on grids: coarse ones are full of ties, and fine ones are beyond float32."""
    generator = torch.Generator().manual_seed(seed)
    generated, reference = (
        torch.randint(levels, (num, width), generator=generator) * step + away for num in (40, 30)
    )
    reference[:10] = reference[10:20]  # copies
    generated[:5] = reference[:5]
    assert_exact(generated.double(), reference.double(), num_neighbors)
    assert_exact(generated.float(), reference.float(), num_neighbors)


def test_a_product_of_low_precision_elsewhere_in_the_run_does_not_reach_the_numbers():
    generated, reference = cloud(60, seed=6).float(), cloud(45, seed=7, shift=0.5).float()
    expected, before = precision_recall(generated, reference), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert precision_recall(generated, reference) == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_more_near_copies_than_neighbours_are_told_apart():
    """Of a few points, each 20 times, off by so little that no product tells: model collapse."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(3, 500, generator=generator)

    def near(num_copies):
        points = centres.repeat_interleave(num_copies, 0)
        rows = torch.arange(len(points))
        steps = 1e-7 * torch.randint(1, 5, (len(points),), generator=generator)
        points[rows, torch.randint(500, (len(points),), generator=generator)] += steps
        return points

    assert_exact(near(20), near(15), 3)


def test_one_image_drawn_again_and_again_is_measured_in_no_more_time():
    copies = torch.rand(1, 64).expand(5000, -1).contiguous()
    assert precision_recall(copies, cloud(50, seed=1)[:, :1].float().expand(-1, 64)) == (0.0, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
def test_features_that_have_no_distance_are_refused(value):
    generated, reference = cloud(9, seed=0).float(), cloud(9, seed=1).float()
    generated[2, 3] = value
    with pytest.raises(ValueError, match="1 of 9 images|9 of 9 images"):
        precision_recall(generated, reference)


def test_an_automatic_lower_precision_does_not_reach_the_numbers():
    generated, reference = cloud(60, seed=6).float(), cloud(45, seed=7, shift=0.5).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = precision_recall(generated, reference)
    assert found == precision_recall(generated, reference)


def test_a_default_of_half_precision_does_not_reach_the_numbers():
    generated, reference = 100 * cloud(60, seed=6).float(), 100 * cloud(45, seed=7).float()
    expected = precision_recall(generated, reference)
    torch.set_default_dtype(torch.float16)
    try:
        assert precision_recall(generated, reference) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_neighbours_are_counted_from_one():
    with pytest.raises(ValueError, match="from 1; got 0"):
        PrecisionRecall(num_neighbors=0)
