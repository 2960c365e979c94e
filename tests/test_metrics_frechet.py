"""The Frechet distance between sets of features."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from ditprune.metrics import Features, FrechetDistance, frechet_distance


def correlated(num_images, num_features, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(num_features, num_features, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-1, 1, num_features, dtype=torch.float64)
    noise = torch.randn(num_images, num_features, generator=generator, dtype=torch.float64)
    return noise * scales @ mixing + shift


def cross(*deviations):
    """Points on the axes whose covariance (n - 1) is exactly diagonal."""
    num_points = 2 * len(deviations)
    arms = torch.diag(torch.tensor(deviations, dtype=torch.float64) * ((num_points - 1) / 2) ** 0.5)
    return torch.cat([arms, -arms])


def by_scipy(x, y):
    x, y = x.double().numpy(), y.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    spread = np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + spread


def by_torch_fidelity(x, y):
    statistics = fid_features_to_statistics(x), fid_features_to_statistics(y)
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def test_two_gaussians_with_diagonal_covariances_have_the_closed_form():
    x, y = cross(1.0, 2.0), cross(3.0, 5.0) + torch.tensor([10.0, 0.0])
    # |mu|^2 + sum (sigma_x - sigma_y)^2 = 100 + 4 + 9
    assert frechet_distance(x, y).item() == pytest.approx(113, rel=1e-12)


def test_equal_sets_are_no_distance_apart_and_never_a_negative_one():
    for num_images in (5, 12, 400):
        x = correlated(num_images, 12, seed=0, shift=3)
        assert 0 <= frechet_distance(x, x).item() < 1e-8 * x.var(0).sum()


@pytest.mark.parametrize(("num_x", "num_y"), [(300, 200), (40, 17)])
def test_it_is_the_matrix_square_root_of_scipy_and_the_number_of_torch_fidelity(num_x, num_y):
    x, y = correlated(num_x, 16, seed=1), correlated(num_y, 16, seed=2, shift=2)
    assert frechet_distance(x, y).item() == pytest.approx(by_scipy(x, y), rel=1e-9)
    assert frechet_distance(x, y).item() == pytest.approx(by_torch_fidelity(x, y), rel=1e-9)


@pytest.mark.parametrize(("num_x", "num_y"), [(12, 9), (12, 500), (500, 12), (64, 63)])
def test_fewer_images_than_features_agree_with_scipy_as_far_as_scipy_goes(num_x, num_y):
    x, y = correlated(num_x, 64, seed=3), correlated(num_y, 64, seed=4, shift=1)
    assert frechet_distance(x, y).item() == pytest.approx(by_scipy(x, y), rel=1e-5)


def test_the_closed_form_holds_to_the_last_digits_where_images_are_fewer_than_features():
    # Four images in forty dimensions: 38 eigenvalues are zero, and rounding has a root.
    rotation = torch.linalg.qr(correlated(40, 40, seed=5)).Q[:2]
    x, y = cross(1.0, 2.0), cross(3.0, 5.0) + torch.tensor([10.0, 0.0])
    assert frechet_distance(x @ rotation, y @ rotation).item() == pytest.approx(113, rel=1e-13)


def test_as_many_images_as_features_have_a_singular_covariance_and_an_exact_distance():
    x = cross(1.0, 2.0)
    x, y = torch.cat([x, x.new_zeros(4, 2)], 1), torch.cat([3 * x + 1, x.new_zeros(4, 2)], 1)
    # |mu|^2 + sum (sigma_x - sigma_y)^2 = 2 + 4 + 16
    assert frechet_distance(x, y).item() == pytest.approx(22, rel=1e-13)


def test_float32_features_far_from_zero_lose_nothing_after_the_network():
    x, y = (correlated(50, 4, seed).float() + 1e4 for seed in (8, 9))
    exact = frechet_distance(x.double() - 1e4, y.double() - 1e4).item()
    assert frechet_distance(x, y).item() == pytest.approx(exact, rel=1e-9)


def test_the_order_of_sets_and_of_images_does_not_matter():
    x, y = correlated(30, 5, seed=10), correlated(20, 5, seed=11, shift=1)
    assert frechet_distance(y, x.flip(0)).item() == pytest.approx(frechet_distance(x, y).item())


def test_one_image_has_no_covariance_and_the_error_says_so():
    with pytest.raises(ValueError, match="two images in each set; got 3 and 1"):
        frechet_distance(torch.rand(3, 4), torch.rand(1, 4))


def test_the_metric_reads_pool_features_and_not_logits():
    x, y = correlated(30, 5, seed=12), correlated(20, 5, seed=13, shift=1)
    metric = FrechetDistance()
    metric.update(Features(x, torch.rand(30, 2)), Features(y, torch.rand(20, 2)))
    assert metric.compute() == {"fid": frechet_distance(x, y).item()}


def test_features_that_are_alike_in_all_images_change_no_digit():
    """As classes that an extractor never sees are: the covariance is singular, and has no root."""
    x, y = correlated(300, 20, seed=14), correlated(200, 20, seed=15, shift=1)
    dead = [torch.cat([z, torch.full((len(z), 80), 0.25, dtype=z.dtype)], 1) for z in (x, y)]
    assert frechet_distance(*dead).item() == pytest.approx(frechet_distance(x, y).item(), rel=1e-12)


def test_features_of_fewer_directions_than_numbers_change_no_digit():
    x, y = correlated(300, 20, seed=14), correlated(200, 20, seed=15, shift=1)
    turn = torch.linalg.qr(correlated(100, 100, seed=16)).Q[:20]
    turned = frechet_distance(x @ turn, y @ turn).item()
    assert turned == pytest.approx(frechet_distance(x, y).item(), rel=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_refused(value):
    x, y = correlated(30, 5, seed=12), correlated(20, 5, seed=13)
    x[3, 2] = value
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(x, y)
    metric = FrechetDistance()
    metric.update(Features(x, x[:, :0]), Features(y, y[:, :0]))
    with pytest.raises(ValueError, match="1 of 30 generated images .* not finite"):
        metric.compute()


@pytest.mark.parametrize("num_copies", [3, 300])
def test_one_image_again_and_again_has_a_mean_and_no_spread(num_copies):
    copies, y = torch.ones(num_copies, 5), correlated(200, 5, seed=17)
    expected = (1 - y.mean(0)).square().sum() + y.var(0).sum()
    assert frechet_distance(copies, y).item() == pytest.approx(expected.item(), rel=1e-12)
    assert frechet_distance(copies, copies) == 0
