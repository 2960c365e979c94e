import json
import re

import pytest
from rich.console import Console

from ditprune.compare import comparison, demand_comparable, main, read_report


def report(fid: float, **changes) -> dict:
    return {
        "target_set": "2 layers (mlp_up)",
        "num_target_weights": 10,
        "num_model_weights": 20,
        "features": "classifier/1234",
        "num_samples": 50,
        "seeds": [0, 1],
        "target_sparsity": 0.5,
        "model_sparsity": 0.25,
        "metrics": {
            "dense": {"fid": [1.0, 1.0]},
            "pruned": {"fid": [fid, fid], "psnr": ["inf", 1.0]},
        },
        **changes,
    }


def printed(table) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_the_table_has_a_column_for_the_dense_model_and_each_run():
    text = printed(comparison({"a": report(4.0), "b": report(3.0)}))
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    assert ["dense", "a", "b"] in rows
    assert ["target sparsity", "0%", "50.00%", "50.00%"] in rows
    assert ["model sparsity", "0%", "25.00%", "25.00%"] in rows
    assert ["fid ↓", "1 ± 0", "4 ± 0", "3 ± 0"] in rows
    assert ["psnr ↑", "inf ± nan", "inf ± nan"] in rows
    assert ["targets: 2 layers (mlp_up)"] in rows
    assert any(row[0].startswith("50 images for each of 2 seeds") for row in rows)


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": 60},
        {"seeds": [0]},
        {"target_set": "x"},
        {"features": "y"},
        {"protocols": ["kid/degree3/100x1000/seed2020"]},
        {"reference": "10 images, 1234"},
        {"conditions": "other prompts"},
    ],
)
def test_runs_that_cannot_be_compared_are_refused(change):
    with pytest.raises(ValueError, match=f"their {next(iter(change))} differs"):
        demand_comparable({"a": report(1.0), "b": report(1.0, **change)})


def test_runs_whose_dense_models_drew_otherwise_are_refused_unless_rounding_hides_it():
    guided = report(1.0)
    guided["metrics"] = {**guided["metrics"], "dense": {"fid": [1.5, 1.5]}}
    with pytest.raises(ValueError, match="(?s)dense models' fid differs.*1 ± 0.*1.5 ± 0"):
        demand_comparable({"a": report(1.0), "b": guided})
    guided["metrics"]["dense"] = {"fid": [1.0 + 1e-9, 1.0 + 1e-9]}
    demand_comparable({"a": report(1.0), "b": guided})


def test_a_folder_without_a_report_is_named(tmp_path):
    (tmp_path / "report.json").write_text("{")
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match=f"{folder} is no finished run"):
            read_report(folder)


def test_the_command_prints_the_table(tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps(report(2.0)))
    main([str(tmp_path)])
    assert "dense" in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    for name, fid in (("a", 4.0), ("b", 3.0)):
        (tmp_path / name / "version_0").mkdir(parents=True)
        content = json.dumps(report(fid))
        (tmp_path / name / "version_0" / "report.json").write_text(content)
    main([str(tmp_path / name / "version_0") for name in ("a", "b")])
    shown = capsys.readouterr().out
    assert "a/version_0" in shown
    assert "b/version_0" in shown


@pytest.mark.parametrize("content", ["{}", "[]", "3"])
def test_a_file_that_is_no_report_is_told_as_one(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match="is none of a run: it lacks .*'metrics'"):
        read_report(tmp_path)
