import re

import pytest
import torch

from ditprune import saved_stats
from ditprune.calibration import LogDecrease, Observation, calibrate
from ditprune.decision import Evidence
from ditprune.families import DiT
from ditprune.importance import TrajectoryImportance
from ditprune.layers import target_weights
from ditprune.saved_stats import (
    load_evidence,
    load_importance,
    load_stats,
    save_evidence,
    save_importance,
    save_stats,
)
from ditprune.targets import Role

SEEN = Observation(3, LogDecrease(25), with_gram=True)
MEASURE = TrajectoryImportance(1.5, num_trajectories=2, num_steps=3)


@pytest.fixture
def weights(tiny_dit):
    return target_weights(tiny_dit, DiT())


@pytest.fixture
def saved(tiny_dit, calibration, weights, tmp_path):
    stats = calibrate(tiny_dit, [calibration], DiT(), weights, SEEN)
    save_stats(tmp_path / "statistics.safetensors", stats, weights, SEEN)
    return tmp_path / "statistics.safetensors", stats


def test_what_was_saved_comes_back_to_the_bit_and_shared_where_it_was(saved, weights):
    path, stats = saved
    loaded = load_stats(path, weights, SEEN)
    assert list(loaded) == list(stats)
    assert all(torch.equal(loaded[t].pack(), stats[t].pack()) for t in stats)
    assert len({id(s) for s in loaded.values()}) == len({id(s) for s in stats.values()}) < 14


def test_gram_matrices_that_layers_share_are_written_once(saved):
    path, stats = saved
    size = sum(8 * s.pack().numel() for s in dict.fromkeys(stats.values()))
    assert size < path.stat().st_size < size * 1.1


def test_statistics_of_another_model_are_refused(saved, tiny_dit, weights):
    next(iter(weights.values()))[0, 0] += 1
    with pytest.raises(ValueError, match=r"another model: the weights of 1 layers.*0\.norm1"):
        load_stats(saved[0], weights, SEEN)


def test_statistics_of_another_target_set_are_refused(saved, tiny_dit):
    fewer = target_weights(tiny_dit, DiT(ignore_roles=(Role.MODULATION,)))
    with pytest.raises(ValueError, match="another target set: 14 layers, where 12 are"):
        load_stats(saved[0], fewer, SEEN)


def test_statistics_of_another_observation_are_refused(saved, weights):
    with pytest.raises(ValueError, match="tells of Observation.*LogDecrease.*is asked for"):
        load_stats(saved[0], weights, Observation(3, with_gram=True))


def test_a_file_that_is_missing_or_cut_off_is_an_error_that_names_it(saved, weights, tmp_path):
    with pytest.raises(ValueError, match=r"cannot read statistics from .*nothing"):
        load_stats(tmp_path / "nothing", weights, SEEN)
    content = saved[0].read_bytes()
    saved[0].write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot read statistics from"):
        load_stats(saved[0], weights, SEEN)


@pytest.fixture
def importance(weights):
    generator = torch.Generator().manual_seed(0)
    sides = {target: len(weight) for target, weight in weights.items()}
    return {t: torch.rand(n, n, generator=generator).double() for t, n in sides.items()}


def test_importance_comes_back_to_the_bit(importance, weights, tmp_path):
    save_importance(tmp_path / "importance.safetensors", importance, MEASURE)
    loaded = load_importance(tmp_path / "importance.safetensors", weights, MEASURE)
    assert list(loaded) == list(importance)
    assert all(torch.equal(loaded[t], importance[t]) for t in importance)
    assert {matrix.dtype for matrix in loaded.values()} == {torch.float64}


@pytest.mark.parametrize("measure", [None, MEASURE])
def test_importance_that_nobody_asks_for_is_not_given(importance, weights, tmp_path, measure):
    path = tmp_path / "importance.safetensors"
    save_importance(path, importance if measure else {}, measure)
    assert load_importance(path, weights, None) == {}


@pytest.mark.parametrize(
    "other",
    [
        TrajectoryImportance(4.0, num_trajectories=2, num_steps=3),
        TrajectoryImportance(1.5, num_trajectories=2, num_steps=3, seed=1),
        None,
    ],
)
def test_importance_of_another_measure_is_refused_by_an_error_that_names_both(
    importance, weights, tmp_path, other
):
    path = tmp_path / "importance.safetensors"
    save_importance(path, importance if other else {}, other)
    both = re.escape(f"tells of importance={other}, and importance={MEASURE} is asked for")
    with pytest.raises(ValueError, match=both):
        load_importance(path, weights, MEASURE)


def test_importance_that_is_missing_cut_off_or_of_other_layers_is_an_error_that_names_it(
    importance, weights, tmp_path
):
    path = tmp_path / "importance.safetensors"
    with pytest.raises(ValueError, match=r"cannot read importance from .*importance.safetensors"):
        load_importance(path, weights, MEASURE)
    save_importance(path, dict(list(importance.items())[:-1]), MEASURE)
    with pytest.raises(ValueError, match=r"importance from .*calibrate again"):
        load_importance(path, weights, MEASURE)
    save_importance(path, importance, MEASURE)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="cannot read importance from"):
        load_importance(path, weights, MEASURE)


def test_importance_of_a_model_is_never_found_beside_statistics_of_another(
    tiny_dit, calibration, weights, importance, tmp_path, monkeypatch
):
    stats = calibrate(tiny_dit, [calibration], DiT(), weights, SEEN)
    evidence = Evidence(stats, importance)
    save_evidence(tmp_path, evidence, weights, SEEN, MEASURE)
    next(iter(weights.values()))[0, 0] += 1

    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(saved_stats, "save_importance", fail)
    with pytest.raises(OSError, match="the disk is full"):
        save_evidence(tmp_path, evidence, weights, SEEN, MEASURE)
    with pytest.raises(ValueError, match="another model"):
        load_evidence(tmp_path, weights, SEEN, MEASURE)
