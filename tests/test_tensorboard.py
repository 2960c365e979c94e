import statistics
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_study_report import result
from torch.utils.tensorboard import SummaryWriter

from ditprune.study_report import StudyReport
from ditprune.tensorboard import write_method


def test_a_method_is_a_curve_over_the_sparsity_and_patterns_stand_apart(tmp_path):
    results = [result("a", setting, seed) for setting in ("50%", "2:4") for seed in (0, 1)]
    results += [replace(results[0], setting="62.5%", target_sparsity=0.63)]
    report = StudyReport(results, {}, 6, "rows")
    with SummaryWriter(tmp_path) as page:
        write_method(page, report, "a")
    run = EventAccumulator(str(tmp_path / "a")).Reload()
    found = [(event.step, event.value) for event in run.Scalars("over sparsity/fid")]
    means = {s: statistics.fmean(report.values("a", s, "fid")) for s in report.settings()}
    assert found == [(50, pytest.approx(means["50%"])), (63, pytest.approx(means["62.5%"]))]
    [apart] = run.Scalars("over sparsity/fid at 2 of 4")
    assert (apart.step, apart.value) == (50, pytest.approx(means["2:4"]))
