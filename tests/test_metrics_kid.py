"""The kernel inception distance."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from torch_fidelity.metric_kid import kid_features_to_metric

from ditprune.metrics import (
    Features,
    KernelInceptionDistance,
    kernel_distance,
    subset_distances,
)
from ditprune.metrics import kernel as kernel_sums


def normal(num_images, num_features=8, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_images, num_features, generator=generator, dtype=torch.float64)
    return noise + shift


def by_sklearn(x, y):
    """Gretton et al. 2012, Eq. 3, with sums over pairs of different images."""
    pairs = {}
    for name, first, second in (("xx", x, x), ("yy", y, y), ("xy", x, y)):
        pairs[name] = polynomial_kernel(first, second, degree=3, gamma=None, coef0=1)
    for name in ("xx", "yy"):
        others = ~np.eye(len(pairs[name]), dtype=bool)
        pairs[name] = pairs[name][others]
    return pairs["xx"].mean() + pairs["yy"].mean() - 2 * pairs["xy"].mean()


def by_torch_fidelity(x, y, num_subsets, size):
    theirs = kid_features_to_metric(
        x, y, kid_subsets=num_subsets, kid_subset_size=size, rng_seed=2020, verbose=False
    )
    return tuple(theirs.values())


@pytest.mark.parametrize(("num_x", "num_y"), [(40, 40), (40, 17), (2, 3)])
def test_it_is_the_unbiased_mmd_of_sklearns_cubic_kernel(num_x, num_y):
    x, y = normal(num_x), normal(num_y, seed=1, shift=0.5)
    expected = by_sklearn(x.numpy(), y.numpy())
    assert kernel_distance(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_blocks_add_up(monkeypatch):
    x, y = normal(40), normal(17, seed=1, shift=0.5)
    expected = kernel_distance(x, y).item()
    monkeypatch.setattr(kernel_sums, "BLOCK_SIZE", 7)
    assert kernel_distance(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_subsets_are_torch_fidelitys_with_its_own_seed():
    x, y = normal(300), normal(200, seed=1, shift=0.5)
    theirs = by_torch_fidelity(x, y, num_subsets=10, size=50)
    ours = subset_distances(x, y, num_subsets=10, subset_size=50)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_one_subset_of_all_images_is_kid_of_all_at_once():
    x, y = normal(60), normal(60, seed=1, shift=0.5)
    mean, deviation = subset_distances(x, y, num_subsets=3, subset_size=60)
    assert mean == pytest.approx(kernel_distance(x, y).item(), rel=1e-12)
    assert deviation < 1e-12


def test_few_images_of_one_distribution_have_no_bias():
    """With images paired with themselves, the mean would be 1.6 here."""
    sets = [(normal(10, seed=2 * i), normal(10, seed=2 * i + 1)) for i in range(400)]
    values = torch.stack([kernel_distance(x, y) for x, y in sets])
    assert values.mean().abs() < 3 * values.std() / 400**0.5 < 0.1
    assert values.min() < 0


def test_float32_features_are_measured_in_float64():
    x, y = normal(50, shift=30).float(), normal(50, seed=1, shift=30).float()
    expected = by_sklearn(x.double().numpy(), y.double().numpy())
    assert kernel_distance(x, y).item() == pytest.approx(expected, rel=1e-6)


def test_too_few_images_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="two images in each set; got 1 and 5"):
        kernel_distance(normal(1), normal(5))
    with pytest.raises(ValueError, match="1000 images; got 999 generated and 1000 .*num_subsets=0"):
        subset_distances(normal(999), normal(1000))


def test_the_metric_measures_all_at_once_or_by_the_published_protocol():
    x, y = normal(1200), normal(1100, seed=1, shift=0.5)
    sets = Features(x, x[:, :2]), Features(y, y[:, :2])
    whole, published = KernelInceptionDistance(), KernelInceptionDistance(num_subsets=2)
    whole.update(*sets)
    published.update(*sets)
    assert whole.compute() == {"kid": kernel_distance(x, y).item()}
    mean, deviation = by_torch_fidelity(x, y, num_subsets=2, size=1000)
    assert published.compute() == pytest.approx({"kid": mean, "kid_std": deviation}, rel=1e-9)


def test_an_automatic_lower_precision_does_not_reach_the_numbers():
    x, y = normal(50).float(), normal(40, seed=1, shift=0.5).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = kernel_distance(x, y).item()
    assert found == kernel_distance(x, y).item()


def test_subsets_are_a_number_of_them():
    with pytest.raises(ValueError, match="0 for none; got -1"):
        KernelInceptionDistance(num_subsets=-1)
