import math

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from ditprune import PruneTarget, Role
from ditprune.plan import LayerPlan
from ditprune.plots import (
    heat_map,
    pair_grid,
    quality_figure,
    row_variation_figure,
    save_curves,
    sparsity_figure,
)
from ditprune.study import Result
from ditprune.study_report import StudyReport


def layers() -> list[LayerPlan]:
    return [
        LayerPlan(PruneTarget(f"{role}{block}", role, block, 1), (4, 4), pool, 4 * block, 0.1)
        for role, pool in ((Role.MLP_UP, "layer"), (Role.MODULATION, "row"))
        for block in range(3)
    ]


def test_the_sparsity_of_every_layer_is_written_into_its_cell():
    texts = [text.get_text() for text in sparsity_figure(layers()).axes[0].texts]
    assert texts == ["0%", "25%", "50%"] * 2


def test_layers_pruned_per_row_are_filled_and_others_open():
    open_role, row_role = row_variation_figure(layers()).axes[0].collections
    assert open_role.get_facecolor()[:, 3].tolist() == [0, 0, 0]
    assert row_role.get_facecolor()[:, 3].tolist() == [1, 1, 1]


def test_each_dense_image_stands_above_the_pruned_one():
    dense = torch.zeros(4, 1, 64, 64, dtype=torch.uint8)
    pruned = torch.full((4, 1, 64, 64), 255, dtype=torch.uint8)
    grid = pair_grid(dense, pruned, num_pairs=4)
    assert grid.shape == (3, 2 * 66 + 2, 4 * 66 + 2)
    assert grid[0, 10, 10] == 0
    assert grid[0, 10 + 66, 10] == 255


def study_of(num_methods: int, psnr: float = 20.0, seeds=(0, 1, 2)) -> StudyReport:
    results = [
        Result(
            method=f"method {number}",
            setting=setting,
            seed=seed,
            recipe={},
            target_set="14 layers",
            target_sparsity=0.5,
            model_sparsity=0.4,
            mask_hash="abc",
            pruning_seconds=1.0,
            metrics={"fid": [2.0 ** (place + number) + seed], "psnr": [psnr]},
        )
        for seed in seeds
        for place, setting in enumerate(("60%", "70%", "80%", "2:4"))
        for number in range(num_methods)
    ]
    return StudyReport(results, {"fid": [0.5]}, num_samples=6, features="rows")


def test_every_method_has_a_curve_of_means_with_deviations_as_bars():
    axes = quality_figure(study_of(2), "fid").axes[0]
    curves = {container.get_label(): container for container in axes.containers}
    assert list(curves) == ["method 0", "method 1"]
    # Of 2^k, 2^k + 1 and 2^k + 2, the mean is 2^k + 1 and the deviation 1.
    assert curves["method 1"].lines[0].get_ydata().tolist() == [3.0, 5.0, 9.0, 17.0]
    low, high = curves["method 1"].lines[1]
    assert (high.get_ydata() - low.get_ydata()).tolist() == [2.0] * 4
    assert [text.get_text() for text in axes.get_xticklabels()] == ["60%", "70%", "80%", "2:4"]


def test_sparsities_are_joined_by_lines_and_patterns_are_not():
    axes = quality_figure(study_of(1), "fid").axes[0]
    joined = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [line.get_ydata().tolist() for line in joined] == [[2.0, 3.0, 5.0]]


def test_the_dense_model_is_a_line_and_only_errors_have_a_logarithmic_axis():
    errors, ratio = (quality_figure(study_of(1), metric).axes[0] for metric in ("fid", "psnr"))
    dense = [line for line in errors.lines if line.get_label() == "dense"]
    assert [list(line.get_ydata()) for line in dense] == [[0.5, 0.5]]
    assert "dense" not in [line.get_label() for line in ratio.lines]
    assert errors.get_yscale() == "log"
    assert ratio.get_yscale() == "linear"


def test_no_two_of_twenty_methods_look_alike_and_no_bar_hides_another():
    containers = quality_figure(study_of(20), "fid").axes[0].containers
    lines = [container.lines[0] for container in containers]
    styles = {(line.get_color(), line.get_marker()) for line in lines}
    assert len(styles) == 20
    places = np.stack([line.get_xdata() for line in lines])
    assert len(np.unique(places[:, 0])) == 20
    assert np.abs(places - np.arange(4)).max() < 0.25


@pytest.mark.parametrize(("psnr", "seeds"), [(math.inf, (0, 1)), (20.0, (7,))])
def test_curves_are_drawn_of_values_without_end_and_of_one_seed(tmp_path, psnr, seeds):
    save_curves(study_of(2, psnr, seeds), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fid.png", "psnr.png"]
    for path in tmp_path.iterdir():
        assert imread(path)[..., :3].std() > 0.01


def clustered(num_rows: int, num_columns: int):
    """Scores of three clusters, interleaved: 1, 10 and 100; of unequal sizes."""
    labels = torch.arange(num_rows) % 4 % 3
    return (10.0 ** labels.float()).unsqueeze(1).expand(num_rows, num_columns), labels


def test_a_heat_map_has_the_rows_of_a_cluster_together_and_lines_between():
    score, labels = clustered(8, 5)
    axes = heat_map(score, labels, "up").axes[0]
    assert axes.images[0].get_array()[:, 0].tolist() == [0.0] * 4 + [1.0] * 2 + [2.0] * 2
    heights = [segment[0][1] for segment in axes.collections[0].get_segments()]
    assert heights == [3.5, 5.5]
    assert axes.get_title() == "up"


def test_a_large_heat_map_is_thinned_and_its_lines_stay_between_the_clusters():
    score, labels = clustered(1030, 2000)
    axes = heat_map(score, labels, "up").axes[0]
    shown = axes.images[0].get_array()
    assert shown.shape == (344, 500)
    heights = [segment[0][1] for segment in axes.collections[0].get_segments()]
    # Every third row and every fourth column is shown, and axes count what there was.
    first_rows = 3 * (np.flatnonzero(np.diff(shown[:, 0])) + 1)
    assert heights == (first_rows - 0.5).tolist()
    assert axes.images[0].get_extent() == [-0.5, 1999.5, 1031.5, -0.5]


def test_a_heat_map_of_one_cluster_and_of_scores_of_zero_is_drawn(tmp_path):
    figure = heat_map(torch.zeros(4, 6), torch.zeros(4, dtype=torch.long), "up")
    figure.savefig(tmp_path / "map.png")
    assert figure.axes[0].images[0].get_array().tolist() == [[-12.0] * 6] * 4
