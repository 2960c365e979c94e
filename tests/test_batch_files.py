import pytest
import torch
from family_contract import some

from ditprune.batch_files import load_batches, save_batches
from ditprune.families import Batch


def equal(one: Batch, other: Batch) -> bool:
    conditions = one.condition, other.condition
    if isinstance(one.condition, torch.Tensor):
        conditions = {"": conditions[0]}, {"": conditions[1]}
    pairs = [(conditions[0][name], conditions[1][name]) for name in conditions[0]]
    pairs += [(getattr(one, name), getattr(other, name)) for name in one._fields if name[0] != "c"]
    same = all(torch.equal(x, y) and x.dtype is y.dtype for x, y in pairs)
    return same and list(conditions[0]) == list(conditions[1])


def test_samples_come_back_as_they_were(calibration, tmp_path):
    shared = some(1, 3, 2).bfloat16().expand(2, 3, 2)
    texts = {"null_text": shared, "text": some(2, 5, 2).bfloat16(), "mask": torch.ones(2, 5).long()}
    level = torch.tensor([0.1, 0.7])
    named = Batch(some(2, 4, 8).bfloat16(), level * 1000, texts, level)
    save_batches(tmp_path / "samples.safetensors", [calibration, named, named.sample(1)])
    loaded = load_batches(tmp_path / "samples.safetensors")
    assert len(loaded) == 3
    assert all(map(equal, loaded, [calibration, named, named.sample(1)]))


def test_a_file_that_is_cut_off_missing_or_of_something_else_is_named(calibration, tmp_path):
    path = tmp_path / "samples.safetensors"
    with pytest.raises(ValueError, match="cannot read calibration samples from .*samples"):
        load_batches(path)
    save_batches(path, [calibration])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="a file that ditprune.save_batches wrote"):
        load_batches(path)
