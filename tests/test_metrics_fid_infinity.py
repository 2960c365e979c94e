"""FID at infinitely many images."""

import numpy as np
import pytest
import scipy.linalg
import torch

from ditprune.metrics import Features, FIDInfinity, fid_infinity, frechet_distance


def normal(num_images, num_features=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_images, num_features, generator=generator, dtype=torch.float64)


def exact(num_images=100, num_features=24):
    """Points whose mean is exactly zero and whose covariance is exactly one."""
    x = normal(num_images, num_features, seed=99)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def by_scipy(x, y, seed):
    def moments(points):
        return points.mean(0), np.cov(points, rowvar=False)

    generator = torch.Generator().manual_seed(seed)
    sizes = np.linspace(len(x) // 10, len(x), 15).astype(int)
    (mean_y, cov_y), fids = moments(y.numpy()), []
    for size in sizes:
        mean, cov = moments(x[torch.randperm(len(x), generator=generator)[:size]].numpy())
        root = scipy.linalg.sqrtm(cov @ cov_y).real
        fids.append(((mean - mean_y) ** 2).sum() + np.trace(cov + cov_y - 2 * root))
    return np.polyfit(1 / sizes, fids, 1)[1]


def test_it_is_where_the_line_of_scipy_and_numpy_ends():
    x, y = 1.2 * normal(500) + 0.1, exact()
    assert fid_infinity(x, y, seed=3) == pytest.approx(by_scipy(x, y, seed=3), rel=1e-9)


def test_the_bias_of_few_images_is_extrapolated_away():
    true = 24 * 0.2**2  # between Gaussians of deviation 1.2 and 1
    biased, extrapolated = [], []
    for seed in range(10):
        x = 1.2 * normal(600, seed=seed)
        biased.append(frechet_distance(x, exact()).item() - true)
        extrapolated.append(fid_infinity(x, exact()) - true)
    assert np.mean(biased) > 0.3
    assert abs(np.mean(extrapolated)) < 0.1 * np.mean(biased)


def test_a_seed_repeats_the_subsets_and_global_random_numbers_are_left_alone():
    x, y, state = normal(100), exact(), torch.get_rng_state()
    assert fid_infinity(x, y, seed=1) == fid_infinity(x, y, seed=1) != fid_infinity(x, y, seed=2)
    assert torch.equal(state, torch.get_rng_state())


def test_images_too_few_for_a_tenth_are_refused():
    with pytest.raises(ValueError, match="20 generated images; got 19"):
        fid_infinity(normal(19), exact())


def test_the_metric_reads_pool_features_with_its_seed():
    x, y = normal(100), exact()
    metric = FIDInfinity(seed=4)
    metric.update(Features(x, x[:, :2]), Features(y, y[:, :2]))
    assert metric.compute() == {"fid_infinity": fid_infinity(x, y, seed=4)}
