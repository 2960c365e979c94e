"""CLIP's maximum mean discrepancy."""

import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel

from ditprune.metrics import CMMD, Features, cmmd
from ditprune.metrics import kernel as kernel_sums


def embeddings(num_images, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_images, 12, generator=generator, dtype=torch.float64) + shift
    return torch.nn.functional.normalize(rows)


def by_sklearn(x, y):
    k_xx, k_yy, k_xy = (rbf_kernel(a, b, gamma=1 / 200).mean() for a, b in ((x, x), (y, y), (x, y)))
    return 1000 * (k_xx + k_yy - 2 * k_xy)


@pytest.mark.parametrize(("num_x", "num_y"), [(50, 50), (50, 17), (1, 1)])
def test_it_is_the_mmd_of_sklearns_gaussian_kernel_with_the_published_width_and_scale(num_x, num_y):
    x, y = embeddings(num_x), embeddings(num_y, seed=1, shift=0.5)
    assert cmmd(x, y).item() == pytest.approx(by_sklearn(x, y), rel=1e-9)


def test_blocks_add_up(monkeypatch):
    x, y = embeddings(50), embeddings(17, seed=1, shift=0.5)
    expected = cmmd(x, y).item()
    monkeypatch.setattr(kernel_sums, "BLOCK_SIZE", 7)
    assert cmmd(x, y).item() == pytest.approx(expected, rel=1e-9)


def test_equal_sets_have_exactly_none_as_images_are_paired_with_themselves():
    assert cmmd(embeddings(30), embeddings(30)).item() == pytest.approx(0, abs=1e-9)


def test_the_length_of_an_embedding_does_not_matter():
    x, y = embeddings(30), embeddings(20, seed=1, shift=0.5)
    assert cmmd(7 * x, 0.1 * y).item() == pytest.approx(cmmd(x, y).item(), rel=1e-9)


def test_the_metric_reads_pool_features_and_needs_no_logits():
    x, y = embeddings(30), embeddings(20, seed=1, shift=0.5)
    metric = CMMD()
    metric.update(Features(x, torch.empty(30, 0)), Features(y, torch.empty(20, 0)))
    assert metric.compute() == {"cmmd": cmmd(x, y).item()}
