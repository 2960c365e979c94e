import numpy as np
import pytest
from scipy import stats

from ditprune import bootstrap
from ditprune.bootstrap import mean_interval, summarize


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(1).gamma(2.0, size=300)


def test_the_interval_is_scipys_for_the_same_random_numbers(values):
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert mean_interval(values) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_it_does_not_depend_on_how_much_is_drawn_at_once(values, monkeypatch):
    whole = mean_interval(values)
    monkeypatch.setattr(bootstrap, "BLOCK", 1000)
    assert mean_interval(values) == whole


def test_images_of_one_prompt_count_as_one_witness(values):
    alone = summarize(values)
    repeated = np.tile(values, 4)
    naive, grouped = summarize(repeated), summarize(repeated, np.tile(np.arange(300), 4))
    assert grouped[1:3] == pytest.approx(alone[1:3], rel=1e-12)
    assert naive.high - naive.low == pytest.approx((alone.high - alone.low) / 2, rel=0.05)


def test_prompts_with_more_images_weigh_more():
    values, groups = np.array([0.0, 1.0, 1.0, 1.0]), np.array([7, 3, 3, 3])
    generator = np.random.default_rng(0)
    expected = []
    for _ in range(10_000):  # of two prompts: the one image, the other three, or one of each
        ones = generator.integers(0, 2, 2)
        expected.append({0: 1.0, 1: 0.75, 2: 0.0}[int(ones.sum())])
    assert mean_interval(values, groups) == tuple(np.quantile(expected, [0.025, 0.975]))
    assert summarize(values, groups).mean == 0.75


def test_the_median_is_not_led_by_a_few_images():
    summary = summarize(np.array([1.0, 1.0, 1.0, 1.0, 96.0]))
    assert (summary.mean, summary.median) == (20, 1)


def test_equal_images_have_an_infinite_psnr_and_no_interval():
    summary = summarize(np.array([np.inf, 20.0, 30.0]))
    assert (summary.mean, summary.median) == (np.inf, 30)
    assert np.isnan([summary.low, summary.high]).all()


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(2)
    covered = [
        low <= 0 <= high
        for low, high in (
            mean_interval(generator.standard_normal(60), num_resamples=1000) for _ in range(300)
        )
    ]
    assert 0.90 <= np.mean(covered) <= 0.98
