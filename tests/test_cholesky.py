import numpy as np
import pytest
import torch
from contracts import repair_problem

from ditprune.cholesky import alive, factorise, inverse_factor, inverse_of_upper
from ditprune.repair.base import hessian_of


def some_hessian(num_tokens: int = 200) -> torch.Tensor:
    return hessian_of(repair_problem(num_tokens=num_tokens).stats, False)


def test_the_damping_is_a_fraction_of_the_mean_diagonal():
    hessian = some_hessian()
    expected = hessian.numpy() + 0.01 * np.trace(hessian.numpy()) / 32 * np.eye(32)
    damped, factor = factorise(hessian, 0.01)
    assert np.allclose(damped.numpy(), expected, rtol=1e-12)
    assert np.allclose(factor.numpy(), np.linalg.cholesky(expected), rtol=1e-8, atol=1e-10)


def test_the_inverse_factor_is_the_upper_cholesky_factor_of_the_inverse():
    hessian = some_hessian()
    damped = hessian.numpy() + 0.01 * np.trace(hessian.numpy()) / 32 * np.eye(32)
    expected = np.linalg.cholesky(np.linalg.inv(damped)).T
    assert np.allclose(inverse_factor(hessian, 0.01).numpy(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", [1, 128, 129, 517])
def test_a_triangle_of_any_size_is_inverted(size):
    rng = np.random.default_rng(size)
    triangle = np.triu(rng.normal(size=(size, size))) / size + np.diag(rng.uniform(1, 2, size))
    found = inverse_of_upper(torch.from_numpy(triangle)).numpy()
    assert np.allclose(found, np.linalg.inv(triangle), rtol=1e-9, atol=1e-12)
    assert np.array_equal(found, np.triu(found))


def test_damping_escalates_until_the_factor_exists():
    hessian = some_hessian() - 0.5 * torch.eye(32, dtype=torch.float64)
    assert torch.linalg.eigvalsh(hessian).min() < -0.1
    damped, factor = factorise(hessian, 0.001)
    added = (damped - hessian).diagonal() / hessian.diagonal().mean()
    assert torch.allclose(factor @ factor.T, damped)
    assert np.isclose(np.log10(added[0].item()) % 1, 0, atol=1e-6)
    assert torch.linalg.eigvalsh(damped - 0.9 * (damped - hessian)).min() < 0


def test_damping_escalates_from_zero_too():
    factor = inverse_factor(some_hessian(num_tokens=3), 0.0)
    assert factor.isfinite().all()
    assert not factor.tril(-1).any()


def test_a_dead_channel_is_cut_off_and_leaves_the_damping_of_the_others():
    hessian = some_hessian()
    hessian[5] = 0
    hessian[:, 5] = 0
    others = torch.arange(32) != 5
    damped = factorise(hessian, 0.01)[0]
    alone = factorise(hessian[others][:, others], 0.01)[0]
    assert torch.equal(damped[others][:, others], alone)
    assert not damped[5, others].any()
    assert 0 < damped[5, 5] < 1e-6 * alone.diagonal().mean()


def test_a_channel_whose_variance_was_rounded_below_zero_is_dead():
    hessian = some_hessian()
    hessian[5, 5] = -1e-9
    assert not alive(hessian)[5]
    assert not factorise(hessian, 0.01)[0][5, torch.arange(32) != 5].any()


def test_no_channel_alive_is_no_error():
    assert inverse_factor(torch.zeros(4, 4, dtype=torch.float64), 0.01).isfinite().all()


def test_what_is_not_finite_ends_with_an_error_and_not_in_a_loop():
    with pytest.raises(ValueError, match="finite"):
        factorise(torch.full((4, 4), torch.nan, dtype=torch.float64), 0.01)
    with pytest.raises(ValueError, match="finite"):
        factorise(torch.full((4, 4), torch.inf, dtype=torch.float64), 0.01)
