"""The inception score of ADM's evaluator."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from ditprune.metrics import ADMInceptionScore, Features, adm_inception_score


def random_logits(num_images, num_classes=7, seed=0):
    return 3 * torch.randn(num_images, num_classes, generator=torch.Generator().manual_seed(seed))


def by_adm(logits, split_size):
    """The evaluator's loop over range(0, n, split_size)."""
    exponentials = np.exp(logits.double().numpy())
    p, scores = exponentials / exponentials.sum(1, keepdims=True), []
    for start in range(0, len(p), split_size):
        part = p[start : start + split_size]
        divergence = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(divergence.sum(1).mean()))
    return np.mean(scores)


@pytest.mark.parametrize(("num_images", "split_size"), [(40, 10), (9, 50), (30, 30)])
def test_splits_are_contiguous_and_each_counts_the_same(num_images, split_size):
    logits = random_logits(num_images)
    expected = by_adm(logits, split_size)
    assert adm_inception_score(logits, split_size) == pytest.approx(expected, rel=1e-12)


def test_full_splits_are_torch_fidelitys_without_its_shuffle():
    logits = random_logits(120, num_classes=1008)
    theirs = isc_features_to_metric(logits, splits=4, shuffle=False)["inception_score_mean"]
    assert adm_inception_score(logits, split_size=30) == pytest.approx(theirs, rel=1e-12)


def test_a_short_last_split_counts_in_full_and_says_so():
    logits = random_logits(43)
    with pytest.warns(UserWarning, match="the last 3 images count as much .* multiple of 20"):
        score = adm_inception_score(logits, split_size=20)
    assert score == pytest.approx(by_adm(logits, 20), rel=1e-12)
    assert score < 0.9 * adm_inception_score(logits[:40], split_size=20)


def test_nothing_is_shuffled():
    by_class = 50 * torch.eye(2).repeat_interleave(50, dim=0)
    assert adm_inception_score(by_class, split_size=50) == pytest.approx(1)


def test_the_metric_splits_at_5000_and_has_a_name_of_its_own():
    features = Features(torch.rand(10_000, 1), random_logits(10_000))
    metric = ADMInceptionScore()
    metric.update(features, features.none())
    expected = pytest.approx(by_adm(features.logits, 5000), rel=1e-12)
    assert metric.compute() == {"inception_score_adm": expected}
