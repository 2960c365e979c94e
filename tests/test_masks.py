import os
import weakref
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ditprune import MaskSet, PruneTarget, Role
from ditprune.masks import StoredMasks, weight_matrix


def target(name: str) -> PruneTarget:
    return PruneTarget(name, Role.MLP_UP, block=1, num_heads=3, block_name="blocks.1")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(5, 3), "conv": nn.Conv2d(4, 2, 1)})


def masks() -> MaskSet:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 5), "conv": (2, 4)}
    return MaskSet({target(n): torch.rand(s, generator=generator) < 0.4 for n, s in shapes.items()})


def test_sparsity_is_that_of_all_weights_and_no_mean_of_layers():
    uneven = MaskSet({target("a"): torch.zeros(1, 9).bool(), target("b"): torch.ones(1, 1).bool()})
    assert uneven.sparsity() == pytest.approx(0.9)


def test_weights_that_go_are_zero_and_the_others_untouched():
    dense, pruned = model(), model()
    masks().apply_(pruned)
    for name, mask in masks().masks.items():
        before, after = weight_matrix(dense, name), weight_matrix(pruned, name)
        assert torch.equal(after, torch.where(mask, before, 0.0))
        assert not torch.signbit(after[~mask]).any()


def test_twice_is_the_same_as_once():
    once, twice = model(), model()
    masks().apply_(once)
    masks().apply_(twice)
    masks().apply_(twice)
    assert all(
        torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True)
    )


def test_pruned_weights_that_come_back_are_found():
    pruned = model()
    masks().apply_(pruned)
    assert masks().violations(pruned) == []
    weight_matrix(pruned, target("conv"))[~masks().masks[target("conv")]] = 1e-9
    assert masks().violations(pruned) == [target("conv")]


def test_masks_of_another_model_are_refused_and_it_is_untouched():
    other = nn.ModuleDict({"a": nn.Linear(5, 4)})
    before = other["a"].weight.clone()
    with pytest.raises(ValueError, match=r"another model; 2 of 2") as error:
        masks().apply_(other)
    assert "a: mask (3, 5), model (4, 5)" in str(error.value)
    assert "conv: mask (2, 4), model lacks it" in str(error.value)
    assert torch.equal(other["a"].weight, before)


def test_saved_masks_come_back_with_their_targets(tmp_path):
    masks().save(tmp_path / "masks.safetensors")
    loaded = MaskSet.load(tmp_path / "masks.safetensors")
    assert loaded.masks.keys() == masks().masks.keys()
    assert all(torch.equal(mask, masks().masks[t]) for t, mask in loaded.masks.items())
    assert loaded.hash() == masks().hash()


def test_a_weight_costs_one_bit_on_disk(tmp_path):
    MaskSet({target("a"): torch.ones(256, 256).bool()}).save(tmp_path / "m")
    assert (tmp_path / "m").stat().st_size < 256 * 256 / 8 + 1000


def test_the_hash_tells_masks_apart_and_ignores_the_order_of_layers():
    flipped = dict(masks().masks)
    flipped[target("a")] = flipped[target("a")].clone()
    flipped[target("a")][2, 4] ^= True
    assert MaskSet(flipped).hash() != masks().hash()
    assert MaskSet(dict(reversed(masks().masks.items()))).hash() == masks().hash()


def test_the_hash_tells_shapes_apart():
    row, column = torch.ones(1, 8).bool(), torch.ones(8, 1).bool()
    assert MaskSet({target("a"): row}).hash() != MaskSet({target("a"): column}).hash()


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "masks.safetensors"
    masks().save(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match="cannot read masks from .*copy it again"):
        MaskSet.load(path)


def test_a_changed_file_is_refused(tmp_path):
    path = tmp_path / "masks.safetensors"
    masks().save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="was changed after it was written"):
        MaskSet.load(path)


def test_some_other_safetensors_file_is_refused(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="cannot read masks"):
        MaskSet.load(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="cannot read masks"):
        MaskSet.load(tmp_path / "nothing.safetensors")


def test_a_failed_save_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    path = tmp_path / "masks.safetensors"
    masks().save(path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ditprune.masks.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        masks().save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["masks.safetensors"]
    assert load_file(path).keys() == {"a", "conv"}


class Watched(StoredMasks):
    """Counts how many of its masks somebody holds."""

    held: ClassVar[list] = []
    most = 0

    def __getitem__(self, target):
        mask = super().__getitem__(target)
        Watched.held = [ref for ref in Watched.held if ref() is not None] + [weakref.ref(mask)]
        Watched.most = max(Watched.most, len(Watched.held))
        return mask


def test_of_stored_masks_one_or_two_are_in_memory_at_a_time(tmp_path):
    whole = MaskSet({target(f"layer{i}"): torch.rand(3, 8) < 0.5 for i in range(9)})
    whole.save(tmp_path / "masks.safetensors")
    stored = MaskSet(Watched([tmp_path / "masks.safetensors"]))
    assert stored.hash() == whole.hash()
    assert stored.sparsity() == whole.sparsity()
    stored.save(tmp_path / "again.safetensors")
    assert MaskSet.load(tmp_path / "again.safetensors").hash() == whole.hash()
    assert 1 <= Watched.most <= 2  # the next one is read before a loop lets the last one go
