import os

import pytest

from ditprune.atomic import demand_writable, writing, writing_folder


def test_a_file_is_there_only_when_its_block_has_ended_well(tmp_path):
    path = tmp_path / "new" / "file"
    with writing(path) as draft:
        draft.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_no_file_is_left_open(tmp_path):
    """A process may open a thousand or so, and an evaluation writes one for each image."""
    before = len(os.listdir("/dev/fd"))
    for number in range(20):
        with writing(tmp_path / str(number)) as draft:
            draft.touch()
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "interrupted"):
        raise KeyboardInterrupt
    assert len(os.listdir("/dev/fd")) == before


def test_an_interrupted_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "model"
    with writing_folder(path) as draft:
        (draft / "old").touch()
    with pytest.raises(KeyboardInterrupt), writing_folder(path) as draft:
        (draft / "new").touch()
        raise KeyboardInterrupt
    assert [p.name for p in path.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    for name in ("old", "new"):
        with writing_folder(tmp_path / "model") as draft:
            (draft / name).touch()
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write to the folder .*file"):
        demand_writable(tmp_path / "file")
    demand_writable(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
