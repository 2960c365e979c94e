import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from ditprune import PruneTarget, Role
from ditprune.pairs import Pair
from ditprune.plan import LayerPlan
from ditprune.plots import (
    balance_figure,
    heat_map,
    importance_figure,
    pairs_figure,
    prediction_figure,
    quality_figure,
    row_variation_figure,
    save_curves,
    sparsity_figure,
)
from ditprune.study import Result
from ditprune.study_report import StudyReport


def target_of(role: Role, block: int) -> PruneTarget:
    return PruneTarget(f"blocks.{block}.{role.value}", role, block, 1, f"blocks.{block}")


def layers() -> list[LayerPlan]:
    return [
        LayerPlan(target_of(role, block), (4, 4), pool, 4 * block, 0.1)
        for role, pool in ((Role.MLP_UP, "layer"), (Role.MODULATION, "row"))
        for block in range(3)
    ]


def test_the_sparsity_of_every_layer_is_written_into_its_cell():
    texts = [text.get_text() for text in sparsity_figure(layers()).axes[0].texts]
    assert texts == ["0%", "25%", "50%"] * 2


def test_two_layers_of_one_role_in_a_block_have_rows_of_their_own():
    text = PruneTarget("blocks.0.text.mlp_up", Role.MLP_UP, 0, 1, "blocks.0")
    figure = sparsity_figure([*layers()[:1], LayerPlan(text, (4, 4), "layer", 4, 0.1)])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "mlp_up",
        "text.mlp_up",
    ]
    assert [text.get_text() for text in figure.axes[0].texts] == ["0%", "25%"]


def test_layers_pruned_per_row_are_filled_and_others_open():
    open_role, row_role = row_variation_figure(layers()).axes[0].collections
    assert open_role.get_facecolor()[:, 3].tolist() == [0, 0, 0]
    assert row_role.get_facecolor()[:, 3].tolist() == [1, 1, 1]


def importance() -> dict[PruneTarget, torch.Tensor]:
    """Matrices of a mean diagonal of 10^block; the text stream's layer has a role of its own."""
    names = {"q": Role.ATTN_Q, "text_q": Role.ATTN_Q, "up": Role.MLP_UP}
    return {
        PruneTarget(f"blocks.{block}.{name}", role, block, 1, f"blocks.{block}"): torch.tensor(
            [[0.5, 9.0], [9.0, 1.5]], dtype=torch.float64
        )
        * 10.0**block
        for block in range(3)
        for name, role in names.items()
    }


def test_the_mean_of_the_diagonal_is_drawn_over_the_blocks_with_a_color_for_each_role():
    figure = importance_figure(importance())
    lines = figure.axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[0, 1, 2]] * 3
    assert all(list(line.get_ydata()) == pytest.approx([1, 10, 100]) for line in lines)
    query, text_query, up = (line.get_color() for line in lines)
    assert query == text_query != up
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["attn_q", "mlp_up"]
    assert figure.axes[0].get_yscale() == "log"


def test_a_layer_that_costs_nothing_leaves_a_gap_on_the_logarithmic_axis(tmp_path):
    costs = importance()
    costs[next(iter(costs))].zero_()
    for silent in (costs, {target: 0 * matrix for target, matrix in costs.items()}):
        figure = importance_figure(silent)
        assert np.isnan(figure.axes[0].lines[0].get_ydata()[0])
        figure.savefig(tmp_path / "figure.png")


def test_each_dense_image_stands_left_of_the_pruned_one_under_its_prompt(tmp_path):
    grey = [torch.full((1, 32, 32), level, dtype=torch.uint8) for level in (10, 200)]
    prompts = ["a cat", "costs $5 and \\frac$", "word " * 100, "d", "e", "f"]
    figure = pairs_figure([Pair(prompt, "mse 0.5", *grey) for prompt in prompts])
    figure.savefig(tmp_path / "figure.png")
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [len(drawn), len(figure.axes)] == [6, 8]
    pixels = drawn[0].images[0].get_array()
    assert pixels.shape == (32, 66, 3)
    assert (pixels[:, :32] == 10).all()
    assert (pixels[:, -32:] == 200).all()
    assert [axes.get_title() for axes in drawn[:2]] == prompts[:2]
    assert len(drawn[2].get_title()) <= 100
    assert drawn[0].get_xlabel() == "mse 0.5"


def study_of(num_methods: int, psnr: float = 20.0, seeds=(0, 1, 2), mse=None) -> StudyReport:
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
            prediction_error=2.0**number,
            metrics={"mse": [mse(number, place)]}
            if mse
            else {"fid": [2.0 ** (place + number) + seed], "psnr": [psnr]},
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
    figure = heat_map(score, labels, torch.zeros(5, dtype=torch.long), "up")
    axes, means = figure.axes[:2]
    assert axes.images[0].get_array()[:, 0].tolist() == [0.0] * 4 + [1.0] * 2 + [2.0] * 2
    heights = [segment[0][1] for segment in axes.collections[0].get_segments()]
    assert heights == [3.5, 5.5]
    assert not axes.collections[1].get_segments()
    assert figure.get_suptitle() == "up"
    assert means.collections[0].get_offsets().tolist() == [
        [mean, row] for row, mean in enumerate([0.0] * 4 + [1.0] * 2 + [2.0] * 2)
    ]


def test_a_heat_map_of_clusters_of_columns_has_those_together_too():
    scores, labels = clustered(8, 5)
    axes = heat_map(scores.T, torch.zeros(5, dtype=torch.long), labels, "up").axes[0]
    assert axes.images[0].get_array()[0].tolist() == [0.0] * 4 + [1.0] * 2 + [2.0] * 2
    places = [segment[0][0] for segment in axes.collections[1].get_segments()]
    assert places == [3.5, 5.5]


def test_a_large_heat_map_is_thinned_and_its_lines_stay_between_the_clusters():
    score, labels = clustered(1030, 2000)
    axes = heat_map(score, labels, torch.zeros(2000, dtype=torch.long), "up").axes[0]
    shown = axes.images[0].get_array()
    assert shown.shape == (344, 500)
    heights = [segment[0][1] for segment in axes.collections[0].get_segments()]
    # Every third row and every fourth column is shown, and axes count what there was.
    first_rows = 3 * (np.flatnonzero(np.diff(shown[:, 0])) + 1)
    assert heights == (first_rows - 0.5).tolist()
    assert axes.images[0].get_extent() == [-0.5, 1999.5, 1031.5, -0.5]


def test_a_heat_map_of_one_cluster_and_of_scores_of_zero_is_drawn(tmp_path):
    alike = [torch.zeros(side, dtype=torch.long) for side in (4, 6)]
    figure = heat_map(torch.zeros(4, 6), *alike, "up")
    figure.savefig(tmp_path / "map.png")
    assert figure.axes[0].images[0].get_array().tolist() == [[-12.0] * 6] * 4


def test_every_method_is_a_curve_of_its_settings_over_prediction_and_image_error():
    report = study_of(2, mse=lambda number, place: float(number + place))
    axes = prediction_figure(report).axes[0]
    curves = {line.get_label(): line for line in axes.lines}
    assert curves["method 1"].get_xdata().tolist() == [2.0] * 4
    assert curves["method 1"].get_ydata().tolist() == [1.0, 2.0, 3.0, 4.0]


def test_the_balance_is_the_axis_whatever_the_order_of_the_methods():
    report = study_of(3, mse=lambda number, place: 10.0 ** (number - place))
    report = replace(report, balances={"method 0": 1.0, "method 1": 0.0, "method 2": 0.5})
    images, steps = balance_figure(report).axes
    curve = images.containers[2].lines[0]
    assert images.containers[2].get_label() == "80%"
    assert curve.get_xdata().tolist() == [0.0, 0.5, 1.0]
    assert curve.get_ydata().tolist() == pytest.approx([0.1, 1.0, 0.01])
    assert steps.containers[0].lines[0].get_ydata().tolist() == [2.0, 4.0, 1.0]


@pytest.mark.parametrize(
    ("balances", "figures"), [({}, {"mse", "prediction"}), ({"method 0": 1.0}, {"alpha"})]
)
def test_figures_of_image_errors_are_written_where_they_say_something(balances, figures, tmp_path):
    report = replace(study_of(2, mse=lambda number, place: 1.0 + place), balances=balances)
    save_curves(report, tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == figures | {"mse", "prediction"}


def test_a_metric_whose_name_has_slashes_is_written_beside_the_others(tmp_path):
    report = study_of(2)
    named = [replace(x, metrics={"clip_score/clip/x100": [1.0]}) for x in report.results]
    save_curves(replace(report, results=named), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["clip_score-clip-x100.png"]
