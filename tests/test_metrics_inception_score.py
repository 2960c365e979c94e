"""The inception score."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from ditprune.metrics import Features, InceptionScore, inception_score


def random_logits(num_images, num_classes=7, seed=0):
    return 3 * torch.randn(num_images, num_classes, generator=torch.Generator().manual_seed(seed))


def shuffled(logits, seed):
    return logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))]


def by_numpy(logits, num_splits):
    """The loop of Salimans et al. 2016 over splits cut at floor(i n / num_splits)."""
    exponentials = np.exp(logits.double().numpy())
    p, scores = exponentials / exponentials.sum(1, keepdims=True), []
    for i in range(num_splits):
        part = p[i * len(p) // num_splits : (i + 1) * len(p) // num_splits]
        divergence = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(divergence.sum(1).mean()))
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize(("num_images", "num_splits"), [(40, 10), (23, 4), (9, 1), (5, 5)])
def test_mean_and_population_deviation_are_those_of_the_formula(num_images, num_splits):
    logits = random_logits(num_images)
    expected = by_numpy(shuffled(logits, seed=5), num_splits)
    assert inception_score(logits, num_splits, seed=5) == pytest.approx(expected, rel=1e-12)


def test_it_is_the_number_of_torch_fidelity_on_the_same_order_of_images():
    logits = random_logits(103, num_classes=1008)
    theirs = isc_features_to_metric(shuffled(logits, seed=0), splits=10, shuffle=False)
    assert inception_score(logits) == pytest.approx(tuple(theirs.values()), rel=1e-12)


def test_equal_images_score_one_and_sure_images_of_all_classes_score_their_number():
    assert inception_score(torch.ones(20, 4))[0] == pytest.approx(1, rel=1e-12)
    assert inception_score(1e4 * torch.eye(4).repeat(5, 1), num_splits=1)[0] == pytest.approx(4)


def test_a_class_that_no_image_may_be_is_no_hole_in_the_score():
    four_of_five = 1e4 * torch.eye(4, 5).repeat(5, 1)  # the last class has probability zero
    assert inception_score(four_of_five, num_splits=1)[0] == pytest.approx(4, rel=1e-12)


def test_images_sorted_by_class_are_shuffled_before_they_are_split():
    by_class = 50 * torch.eye(2).repeat_interleave(50, dim=0)
    assert inception_score(by_class, num_splits=2)[0] > 1.9  # 1.0 in file order


def test_a_seed_repeats_the_splits_and_another_one_changes_them():
    logits = random_logits(50)
    assert inception_score(logits, seed=1) == inception_score(logits, seed=1)
    assert inception_score(logits, seed=1) != inception_score(logits, seed=2)


def test_the_global_random_numbers_are_neither_used_nor_moved():
    logits = random_logits(50)
    torch.manual_seed(0)
    first, state = inception_score(logits), torch.get_rng_state()
    torch.manual_seed(1)
    second = inception_score(logits)
    torch.manual_seed(0)
    assert first == second
    assert torch.equal(state, torch.get_rng_state())


def test_fewer_images_than_splits_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="10 splits of 9 images"):
        inception_score(random_logits(9))


def test_the_metric_needs_no_reference_and_returns_the_mean():
    generated = Features(torch.rand(50, 3), random_logits(50))
    metric = InceptionScore(num_splits=5, seed=3)
    metric.update(generated, generated.none())
    assert metric.compute() == {"inception_score": inception_score(generated.logits, 5, 3)[0]}
