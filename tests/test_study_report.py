import csv
import io
import math
import statistics
from dataclasses import replace

import pytest
from scipy.stats import spearmanr

from ditprune.study import Result
from ditprune.study_report import StudyReport


def result(method: str, setting: str, seed: int, **changes) -> Result:
    number = {"a": 1.0, "b": 2.0}[method] * {"50%": 1.0, "2:4": 10.0}[setting]
    values = {
        "recipe": {"saliency": "Wanda"},
        "target_set": "14 layers (modulation, mlp_up)",
        "target_sparsity": 0.5,
        "model_sparsity": 0.25 + 0.01 * seed,
        "mask_hash": f"{method}{seed}",
        "pruning_seconds": 1.0 + seed,
        "prediction_error": number / 10,
        "metrics": {"fid": [number + seed, number + seed + 4.0], "psnr": [20.0, 10.0 + seed]},
    }
    return Result(**{"method": method, "setting": setting, "seed": seed, **values, **changes})


@pytest.fixture
def report() -> StudyReport:
    results = [
        result(method, setting, seed)
        for seed in (0, 1, 5)
        for setting in ("50%", "2:4")
        for method in ("a", "b")
    ]
    return StudyReport(results, {"fid": [0.5, 0.75]}, num_samples=6, features="rows")


def test_values_are_means_over_sampling_seeds_one_for_each_calibration_seed(report):
    assert report.values("a", "50%", "fid") == [3.0, 4.0, 8.0]
    assert report.values("b", "2:4", "fid") == [22.0, 23.0, 27.0]
    assert report.values("a", "50%", "psnr") == [15.0, 15.5, 17.5]


def rows_of(table: str) -> list[list[str]]:
    lines = [line.strip("|").split("|") for line in table.splitlines()]
    return [[cell.strip() for cell in line] for line in lines]


def test_the_table_gives_mean_and_deviation_over_the_calibration_seeds(report):
    # 3, 4, 8: mean 5, squared deviations 4 + 1 + 9, the root of 14 / 2 is 2.65. Over all six
    # values it would be 3.2, and of the population of three 2.2.
    # 15, 15.5, 17.5: mean 16, (1 + 0.25 + 2.25) / 2, root 1.3.
    head, _, _, a, b = rows_of(report.table("50%"))
    assert head == [
        *("method", "targets' sparsity", "model's sparsity", "fid ↓", "psnr ↑"),
        *("prediction error ↓", "pruning, s"),
    ]
    assert a == ["a", "50.00%", "27.00%", "5 ± 3", "16 ± 1", "0.1 ± 0", "3.0"]
    assert b[0] == "b"
    assert b[3] == "6 ± 3"
    assert statistics.stdev([3.0, 4.0, 8.0]) == pytest.approx(7**0.5)


def test_the_dense_row_has_a_mean_over_the_sampling_seeds_and_no_deviation(report):
    dense = rows_of(report.table("2:4"))[2]
    assert dense == ["dense", "0%", "0%", "0.625", "", "0", ""]


def test_the_page_says_what_was_pruned_drawn_and_repeated(report):
    page = report.to_markdown()
    assert "- targets: 14 layers (modulation, mlp_up)" in page
    assert "- images: 6 for each of 2 sampling seeds" in page
    assert "over 3 calibration seeds [0, 1, 5]" in page
    assert "- features: rows" in page
    assert "speed: that of the dense model" in page
    assert page.index("## 50%") < page.index("## 2:4")


def test_one_seed_has_no_deviation():
    report = StudyReport([result("a", "50%", 0)], {}, 6, "rows")
    assert rows_of(report.table("50%"))[3] == ["a", "50.00%", "25.00%", "3", "15", "0.1", "1.0"]


def test_every_pair_of_seeds_is_a_line_of_the_csv(report):
    lines = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert len(lines) == len(report.results) * 2
    found = {
        (line["method"], line["setting"], int(line["seed"]), int(line["sampling_seed_index"])): (
            float(line["fid"]),
            float(line["psnr"]),
            line["mask_hash"],
            float(line["model_sparsity"]),
        )
        for line in lines
    }
    assert found == {
        (r.method, r.setting, r.seed, i): (
            r.metrics["fid"][i],
            r.metrics["psnr"][i],
            r.mask_hash,
            r.model_sparsity,
        )
        for r in report.results
        for i in (0, 1)
    }


def test_names_with_commas_and_values_without_end_survive_the_csv():
    one = replace(result("a", "50%", 0), method="wanda, per row", metrics={"psnr": [math.inf]})
    line = next(csv.DictReader(io.StringIO(StudyReport([one], {}, 6, "rows").to_csv())))
    assert line["method"] == "wanda, per row"
    assert float(line["psnr"]) == math.inf


def test_saving_writes_both_files(report, tmp_path):
    report.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.csv", "study.md"]
    assert (tmp_path / "study.md").read_text() == report.to_markdown()


def test_the_page_tells_whether_predictions_rank_methods_as_images_do():
    """Against scipy's Spearman correlation; a Pearson correlation would differ."""
    images, predictions = [1.0, 2.0, 30.0, 4.0, 5.5], [0.1, 0.4, 0.2, 0.3, 9.0]
    names = "abcde"
    cells = [
        replace(
            result("a", "50%", 0), method=name, prediction_error=predicted, metrics={"mse": [image]}
        )
        for name, image, predicted in zip(names, images, predictions, strict=True)
    ]
    expected = spearmanr(predictions, images).statistic
    report = StudyReport(cells, {}, 6, "rows")
    assert report.agreement("50%") == pytest.approx(expected)
    assert f"over the methods: {expected:.2f}" in report.to_markdown()
    assert "rank correlation" not in StudyReport(cells[:3], {}, 6, "rows").to_markdown()
