import pytest
import torch

from ditprune.families.conditional import branches_of, unbatched, within


def test_labels_are_refused():
    with pytest.raises(ValueError, match=r"shape \[3\].*takes named ones"):
        branches_of(torch.arange(3))


def test_a_null_tensor_that_takes_the_place_of_nothing_is_an_error():
    condition = {"text": torch.ones(1), "null_txt": torch.ones(1)}
    with pytest.raises(ValueError, match="null_txt takes the place of nothing; .* has text"):
        branches_of(condition)


def test_what_has_no_null_twin_is_shared_and_the_condition_comes_first():
    text, null, ids = torch.tensor([1]), torch.tensor([0]), torch.tensor([7])
    assert branches_of({"null_text": null, "text": text, "ids": ids}) == [
        {"text": text, "ids": ids},
        {"text": null, "ids": ids},
    ]


def test_arguments_that_are_not_there_stay_away():
    assert within({"a": 1}, "added", ["b"]) == {"a": 1}
    assert within({"a": 1, "b": 2}, "added", ["b", "c"]) == {"a": 1, "added": {"b": 2}}
    assert unbatched({"a": torch.ones(2, 3)}, ["b"])["a"].shape == (2, 3)
