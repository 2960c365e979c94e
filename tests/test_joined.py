"""Rows that come in parts."""

import os
import tempfile
from functools import partial

import pytest
import torch

from ditprune.joined import joined, mapped

PARTS = [
    {"pool": torch.rand(3, 5), "ids": torch.tensor([1, 2, 3]), "none": torch.zeros(3, 0)},
    {"pool": torch.rand(2, 5), "ids": torch.tensor([4, 5]), "none": torch.zeros(2, 0)},
]


def own_megabytes() -> float:
    """What this process has in memory that no file holds."""
    with open(f"/proc/{os.getpid()}/status") as file:
        [line] = [line for line in file if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("join", [joined, mapped])
def test_parts_come_one_after_the_other(join):
    whole = join(PARTS)
    assert list(whole) == ["pool", "ids", "none"]
    for name, rows in whole.items():
        assert rows.dtype == PARTS[0][name].dtype
        assert torch.equal(rows, torch.cat([part[name] for part in PARTS]))


def test_rows_that_do_not_lie_in_a_row_in_memory_are_mapped_in_their_order():
    transposed = torch.rand(4, 6).T
    assert torch.equal(mapped([{"x": transposed[::2]}])["x"], transposed[::2])


def test_mapped_rows_are_no_files_that_anybody_sees_and_outlive_one_another(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, second = mapped(PARTS), mapped(PARTS[1:])
    assert not list(tmp_path.iterdir())
    del second
    assert torch.equal(first["ids"], torch.arange(1, 6))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="tells memory as Linux does")
def test_mapped_rows_take_no_memory_of_the_process():
    before = own_megabytes()
    rows = mapped({"x": torch.full((1000, 1000), float(i))} for i in range(50))["x"]
    assert rows.sum(dtype=torch.float64) == 1e6 * sum(range(50))
    assert own_megabytes() - before < 50  # of 200


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no disk that is always full")
def test_a_full_disk_is_told_with_the_folder_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "r+b"))
    with pytest.raises(ValueError, match=f"all images in {tmp_path}: .*No space left.*TMPDIR"):
        mapped(PARTS)


@pytest.mark.parametrize(
    ("second", "error"),
    [
        ({"x": torch.ones(2, 5)}, r"shape \(5,\) .* after rows of shape \(3,\)"),
        ({"x": torch.ones(2, 3).double()}, "in torch.float64 come after .*float32"),
        ({"y": torch.ones(2, 3)}, r"\['y'\] come after \['x'\]"),
        ({}, r"\[\] come after \['x'\]"),
    ],
)
def test_parts_of_another_kind_are_refused(second, error):
    with pytest.raises(ValueError, match=error):
        mapped([{"x": torch.ones(2, 3)}, second])
