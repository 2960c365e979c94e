import json
from dataclasses import replace

import pytest

from ditprune import PruneTarget, Role
from ditprune.bootstrap import Summary
from ditprune.plan import LayerPlan, Plan
from ditprune.report import PruneReport, headings, spread


def layer(block: int, shape: tuple[int, int], num_pruned: int) -> LayerPlan:
    target = PruneTarget(f"blocks.{block}.up", Role.MLP_UP, block, 1)
    return LayerPlan(target, shape, "row", num_pruned, row_variation=0.25)


def make_report(**changes) -> PruneReport:
    settings = {
        "recipe": {"saliency": "Wanda"},
        "plan": Plan((layer(0, (10, 10), 20), layer(1, (10, 30), 180)), num_model_weights=1000),
        "mask_hash": "abc",
        "features": "classifier/1234",
        "num_samples": 50,
        "seeds": (0, 7),
        "dense": {"fid": [1.0, 3.0]},
        "pruned": {"fid": [4.0, 4.5], "psnr": [float("inf"), 20.0]},
        "per_image": {
            "dense": {},
            "pruned": {
                "psnr": Summary(float("inf"), float("nan"), float("nan"), 30.0),
                "lpips/alex/1234": Summary(0.25, 0.2, 0.3, 0.125),
            },
            "pruned - dense": {"clip": Summary(-1.0, -1.5, -0.5, -0.75)},
        },
        "cost": {"calibration, s": 1.25},
    }
    return PruneReport(**{**settings, **changes})


@pytest.fixture
def report() -> PruneReport:
    return make_report()


def test_sparsity_is_weighted_by_size_and_given_for_targets_and_model(report):
    assert report.plan.target_sparsity == 0.5
    assert report.plan.model_sparsity == 0.2
    assert "200 of 400 weights go (50.00%); whole model: 20.00% of 1,000" in report.to_markdown()


def test_the_table_gives_mean_and_deviation_over_the_seeds(report):
    # The deviation of a sample of two is the root of half the squared difference: 1.41, 0.35.
    assert "| fid ↓ | 2 ± 1 | 4.25 ± 0.4 |" in report.to_markdown()
    assert "50 for each of 2 seeds [0, 7]" in report.to_markdown()
    assert "features: classifier/1234" in report.to_markdown()


def test_what_every_image_has_for_itself_comes_with_interval_and_median(report):
    page = report.to_markdown()
    assert "| lpips ↓ | pruned | 0.25 | 0.2 to 0.3 | 0.125 |" in page
    assert "| clip ↑ | pruned - dense | -1 | -1.5 to -0.5 | -0.75 |" in page
    assert "| psnr ↑ | pruned | inf |  | 30 |" in page


def test_tables_name_metrics_shortly_and_the_page_says_once_what_they_are(report):
    page = replace(report, protocols=["fid", "kid/degree3/all"]).to_markdown()
    assert "- metrics of them: fid, kid/degree3/all" in page
    assert "- metrics of each image: psnr, lpips/alex/1234, clip" in page
    assert page.count("lpips/alex/1234") == 1


def test_two_metrics_of_a_kind_keep_their_protocols_in_tables():
    assert headings(["fid", "fid/animals", "lpips/alex/1", "psnr"]) == {
        "fid": "fid ↓",
        "fid/animals": "fid/animals ↓",
        "lpips/alex/1": "lpips ↓",
        "psnr": "psnr ↑",
    }


def test_it_says_that_zeros_bring_no_speed(report):
    assert "- Zeros are not speed: " in report.to_markdown()


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"num_samples": 9_999}, True),
        ({"num_samples": 10_000}, False),
        ({"dense": {"kid": [1.0]}, "pruned": {"kid": [1.0]}}, False),
        ({"dense": {"sfid": [1.0]}, "pruned": {}}, True),
    ],
)
def test_it_warns_of_a_frechet_distance_on_few_images(changes, warned):
    assert ("its bias goes as 1/N" in make_report(**changes).to_markdown()) == warned


def test_it_says_that_one_seed_tells_nothing_of_chance(report):
    assert "From one seed" not in report.to_markdown()
    assert "From one seed" in make_report(seeds=(0,)).to_markdown()


def test_the_recipe_is_a_sentence_without_what_it_lacks():
    parts = {"saliency": "Energy()", "granularity": "Layer()", "repair": "None"}
    expected = "50.00% of the targets' weights pruned: scored by Energy(), compared within Layer()."
    assert make_report(recipe=parts).sentence() == expected
    repaired = make_report(recipe={**parts, "repair": "ADMM()"}).sentence()
    assert repaired.endswith("compared within Layer(), the kept ones repaired by ADMM().")


def test_one_seed_has_no_deviation():
    assert spread([2.5]) == "2.5"


def test_the_json_is_strict_and_complete(report):
    parsed = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert parsed["metrics"]["pruned"]["psnr"] == ["inf", 20.0]
    assert parsed["per_image"]["pruned"]["psnr"]["low"] == "nan"
    assert parsed["per_image"].keys() == {"pruned", "pruned - dense"}
    assert parsed["layers"][1]["sparsity"] == pytest.approx(0.6)
    assert parsed["target_set"] == "2 layers (mlp_up)"


def test_the_config_beside_the_model_holds_no_measurement(report):
    assert {"metrics", "per_image", "cost"}.isdisjoint(report.pruning_config())
    assert report.pruning_config()["mask_hash"] == "abc"


def test_saving_writes_both_files(report, tmp_path):
    report.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
