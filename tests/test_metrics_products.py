"""Products of all pairs of features."""

import pytest
import torch

from ditprune.metrics.products import products


def normal(num_rows, num_columns, dtype):
    generator = torch.Generator().manual_seed(num_rows)
    return torch.randn(num_rows, num_columns, generator=generator, dtype=dtype)


@pytest.mark.parametrize("one_dnn", [True, False])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_they_are_as_precise_as_the_features(dtype, digits, one_dnn, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: one_dnn)
    x, y = normal(30, 500, dtype), normal(17, 500, dtype)
    found = products(x, y)
    assert found.dtype == dtype
    assert (found.double() - x.double() @ y.double().T).abs().max() < digits


@pytest.mark.parametrize(("num_x", "num_y"), [(0, 3), (3, 0)])
def test_no_rows_have_no_products(num_x, num_y):
    found = products(normal(num_x, 5, torch.float32), normal(num_y, 5, torch.float32))
    assert found.shape == (num_x, num_y)


def test_rows_of_a_slice_and_of_steps_are_taken_as_they_lie():
    x, y = normal(30, 16, torch.float32), normal(20, 16, torch.float32)
    found = products(x[3::2], y.T.contiguous().T[4:])
    torch.testing.assert_close(found, x[3::2] @ y[4:].T)
