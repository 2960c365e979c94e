import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import split

import ditprune
from ditprune import study as study_module
from ditprune.budget import SharedThreshold, Uniform
from ditprune.families import Batch, DiT
from ditprune.granularity import ClusteringAware, Layer, NofM, Row
from ditprune.importance import TrajectoryImportance
from ditprune.layers import target_weights
from ditprune.masks import weight_matrix
from ditprune.recipe import Recipe
from ditprune.repair import KroneckerADMM, LeastSquares, SparseGPT
from ditprune.saliency import Energy, Magnitude, SearchedEnergy
from ditprune.study import Bench, Study, at, run

WANDA = Recipe(Energy(1.0, 1.0), Row())
MAGNITUDE = Recipe(Magnitude(), Layer())
SPARSE_GPT = Recipe(Energy(1.0, 1.0), Layer(), repair=SparseGPT(), sequential=True)
IMPORTANCE = TrajectoryImportance(num_trajectories=2, num_steps=2)
BEST = Recipe(
    Energy(1.0, 1.0),
    Layer(),
    budget=SharedThreshold(),
    repair=KroneckerADMM(max_iterations=3),
    importance=IMPORTANCE,
)


class Counted:
    """Measures a number that every weight and bias moves, and counts how often it is asked."""

    def __init__(self, model) -> None:
        self.model = model
        self.calls = 0

    def __call__(self) -> dict[str, list[float]]:
        self.calls += 1
        return {
            "mse": [sum(float(p.detach().double().abs().sum()) for p in self.model.parameters())]
        }


@pytest.fixture
def samples(calibration):
    """Other latents for each seed, in batches of five."""

    def draw(seed: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(calibration.latents.shape, generator=generator)
        return split(calibration._replace(latents=noise), 5)

    return draw


@pytest.fixture
def bench_of(tiny_dit, samples, scheduler, tmp_path):
    def make(**changes) -> Bench:
        model = changes.get("model", tiny_dit)
        settings = {
            "model": model,
            "family": DiT(),
            "scheduler": scheduler,
            "samples": samples,
            "measure": Counted(model),
            "identity": "6 images",
            "folder": tmp_path,
        }
        return Bench(**{**settings, **changes})

    return make


@pytest.fixture
def calibrated(monkeypatch):
    """Count what is calibrated, and whether the model was dense then."""
    seen = []
    inner = study_module.calibrate

    def counted(*arguments):
        seen.append(arguments[-1])
        return inner(*arguments)

    monkeypatch.setattr(study_module, "calibrate", counted)
    return seen


def facts(results) -> dict:
    """All that equal runs share."""
    names = ("target_sparsity", "model_sparsity", "mask_hash", "metrics", "recipe", "target_set")
    return {(r.method, r.setting, r.seed): [getattr(r, name) for name in names] for r in results}


def test_every_method_is_run_at_every_setting_from_every_seed():
    methods = {"wanda": WANDA, "magnitude": MAGNITUDE}
    cells = Study(methods, (0.25, 0.625), (NofM(2, 4),), (3, 5)).cells()
    assert {cell[:3] for cell in cells} == {
        (method, setting, seed)
        for method in ("wanda", "magnitude")
        for setting in ("25%", "62.5%", "2:4")
        for seed in (3, 5)
    }
    assert len(cells) == 12
    assert {c.setting: c.recipe.sparsity for c in cells if c.method == "wanda"} == {
        "25%": 0.25,
        "62.5%": 0.625,
        "2:4": 0.5,
    }


@pytest.mark.parametrize(
    ("methods", "options"),
    [
        ({}, {"sparsities": (0.5,)}),
        ({"a": WANDA}, {}),
        ({"a": WANDA}, {"sparsities": (0.5,), "seeds": ()}),
    ],
)
def test_a_study_of_nothing_is_refused(methods, options):
    with pytest.raises(ValueError, match="needs methods, seeds, and sparsities or patterns"):
        Study(methods, **options)


def test_a_pattern_alone_is_a_study():
    assert [cell.setting for cell in Study({"a": WANDA}, (), (NofM(1, 2),), (0,)).cells()] == [
        "1:2"
    ]


@pytest.mark.parametrize("options", [{"sparsities": (0.5, 0.5)}, {"seeds": (0, 1, 0)}])
def test_what_is_asked_for_twice_would_count_twice_and_is_refused(options):
    with pytest.raises(ValueError, match="each setting and each seed once"):
        Study({"a": WANDA}, **{"sparsities": (0.5,), **options})


def test_sparsities_that_differ_have_names_that_differ():
    settings = [c.setting for c in Study({"a": WANDA}, (0.333, 0.334, 0.6), seeds=(0,)).cells()]
    assert settings == ["33.3%", "33.4%", "60%"]


def test_a_pattern_takes_the_place_of_granularity_budget_and_sparsity_alone():
    method = Recipe(
        Energy(1.0, 1.0), ClusteringAware(), 0.7, SharedThreshold(), LeastSquares(), True, "dense"
    )
    placed = at(method, NofM(1, 4))
    assert placed.granularity == NofM(1, 4)
    assert placed.budget == Uniform()
    assert placed.sparsity == 0.75
    changed = {"granularity", "budget", "sparsity"}
    assert {n for n, part in placed.parts().items() if part != method.parts()[n]} == changed
    assert at(method, 0.4) == method.at(0.4)


METHODS = {
    "magnitude": MAGNITUDE,
    "wanda": WANDA,
    "least-squares": Recipe(Energy(1.0, 1.0), Layer(), repair=LeastSquares()),
    "sparsegpt": SPARSE_GPT,
    "dense-goal": Recipe(
        Energy(1.0, 1.0), Layer(), repair=LeastSquares(), sequential=True, goal="dense"
    ),
    "best": BEST,
}


def test_a_cell_gives_what_pruning_the_dense_model_by_its_recipe_gives(
    bench_of, tiny_dit, samples, scheduler
):
    results = run(Study(METHODS, (0.5,), (NofM(2, 4),), (1,)), bench_of())
    assert len(results) == 12
    for result in results:
        alone = copy.deepcopy(tiny_dit)
        setting = NofM(2, 4) if result.setting == "2:4" else 0.5
        recipe = at(METHODS[result.method], setting)
        batches = samples(result.seed)
        outcome = ditprune.prune(alone, batches, family=DiT(), recipe=recipe, scheduler=scheduler)
        assert result.mask_hash == outcome.masks.hash()
        assert result.metrics == {"mse": [pytest.approx(Counted(alone)()["mse"][0], rel=1e-6)]}
        assert result.target_sparsity == outcome.masks.sparsity() == 0.5
        sizes = [p.numel() for p in alone.parameters()]
        gone = sum(int((~mask).sum()) for mask in outcome.masks.masks.values())
        assert result.model_sparsity == pytest.approx(gone / sum(sizes))
        assert result.recipe == recipe.parts()
        assert result.target_set.startswith("14 layers (modulation, ")
        assert result.pruning_seconds > 0


def test_the_order_of_the_cells_decides_nothing(bench_of, tmp_path):
    methods = {name: METHODS[name] for name in ("least-squares", "sparsegpt", "wanda")}
    there = run(Study(methods, (0.3, 0.6), seeds=(0, 1)), bench_of(folder=tmp_path / "there"))
    turned = dict(reversed(methods.items()))
    back = run(Study(turned, (0.6, 0.3), seeds=(1, 0)), bench_of(folder=tmp_path / "back"))
    assert facts(there) == facts(back)
    assert len({r.mask_hash for r in there}) == len(there) == 12


def test_the_model_is_dense_afterwards(bench_of, tiny_dit):
    dense = copy.deepcopy(tiny_dit.state_dict())
    run(Study({"sparsegpt": SPARSE_GPT, "best": BEST}, (0.5,), seeds=(0,)), bench_of())
    assert all(torch.equal(value, dense[name]) for name, value in tiny_dit.state_dict().items())


def test_the_model_is_dense_after_a_measurement_that_fails(bench_of, tiny_dit, tmp_path):
    dense = copy.deepcopy(tiny_dit.state_dict())

    def fail():
        assert float(weight_matrix(tiny_dit, next(iter(target_weights(tiny_dit, DiT())))).min()) < 0
        assert any(not torch.equal(v, dense[name]) for name, v in tiny_dit.state_dict().items())
        raise RuntimeError("the disk is full")

    study = Study({"sparsegpt": SPARSE_GPT}, (0.5,), seeds=(0,))
    with pytest.raises(RuntimeError, match="the disk is full"):
        run(study, bench_of(measure=fail))
    assert all(torch.equal(value, dense[name]) for name, value in tiny_dit.state_dict().items())
    assert not list(tmp_path.rglob("*.json"))
    again = bench_of()
    run(study, again)
    assert again.measure.calls == 1


STUDY = Study({"magnitude": MAGNITUDE, "wanda": WANDA}, (0.5,), (NofM(2, 4),), (0, 1))


def test_what_has_a_result_is_neither_calibrated_nor_measured_again(bench_of, calibrated):
    first = bench_of()
    results = run(STUDY, first)
    assert first.measure.calls == 8
    assert len(calibrated) == 2
    second = bench_of()
    assert run(STUDY, second) == results
    assert second.measure.calls == 0
    assert len(calibrated) == 2


def test_a_study_goes_on_where_it_stopped(bench_of):
    class Stopped(Counted):
        def __call__(self):
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().__call__()

    bench = bench_of()
    with pytest.raises(KeyboardInterrupt):
        run(STUDY, bench_of(measure=Stopped(bench.model)))
    run(STUDY, bench)
    assert bench.measure.calls == 5


@pytest.mark.parametrize("content", ["", "half", "[]", "null", '{"method": "wanda"}', "\udcff"])
def test_a_damaged_result_is_measured_again(bench_of, tmp_path, content):
    results = run(STUDY, bench_of())
    path = next((tmp_path / "cells").glob("wanda-50_*-seed1-*"))
    whole = path.read_bytes()
    text = (
        whole[: len(whole) // 2] if content == "half" else content.encode(errors="surrogateescape")
    )
    path.write_bytes(text)
    again = bench_of()
    assert facts(run(STUDY, again)) == facts(results)
    assert again.measure.calls == 1
    assert json.loads(path.read_text())["mask_hash"] == json.loads(whole)["mask_hash"]


def test_what_another_evaluation_measured_is_measured_again(bench_of):
    run(STUDY, bench_of())
    other = bench_of(identity="12 images")
    run(STUDY, other)
    assert other.measure.calls == 8


def test_another_recipe_of_the_same_name_is_run_and_the_others_are_not(bench_of, calibrated):
    run(STUDY, bench_of())
    other = bench_of()
    methods = {**STUDY.methods, "wanda": Recipe(Energy(1.0, 1.0), Layer())}
    run(Study(methods, (0.5,), (), (0, 1)), other)
    assert other.measure.calls == 2
    assert len(calibrated) == 2


@pytest.mark.parametrize("recipe", [WANDA, BEST], ids=["wanda", "best"])
def test_another_model_in_the_same_folder_is_calibrated_and_run_anew(
    bench_of, tiny_dit, tmp_path, recipe
):
    study = Study({"it": recipe}, (0.5,), seeds=(0,))
    old = run(study, bench_of())
    changed = copy.deepcopy(tiny_dit)
    with torch.no_grad():
        changed.transformer_blocks[1].ff.net[2].weight *= -1.5
    bench = bench_of(model=changed)
    new = run(study, bench)
    assert bench.measure.calls == 1
    fresh = run(study, bench_of(model=changed, folder=tmp_path / "fresh"))
    assert facts(new) == facts(fresh) != facts(old)


def test_other_targets_are_other_results(bench_of, tmp_path):
    study = Study({"wanda": WANDA}, (0.5,), seeds=(0,))
    run(study, bench_of())
    fewer = DiT(ignore_roles=(ditprune.Role.MODULATION,))
    result = run(study, bench_of(family=fewer))[0]
    assert result.target_set.startswith("12 layers (attn_q")


@pytest.mark.parametrize("kind", ["statistics", "importance"])
def test_statistics_that_are_damaged_are_collected_again(bench_of, calibrated, tmp_path, kind):
    results = run(Study({"best": BEST}, (0.5,), seeds=(0,)), bench_of())
    paths = list((tmp_path / "statistics").glob(f"seed0-????????????/{kind}.safetensors"))
    assert len(paths) == 1
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    more = run(Study({"best": BEST}, (0.5, 0.6), seeds=(0,)), bench_of())
    assert len(calibrated) == 2
    assert facts(more[:1]) == facts(results)


def test_a_seed_is_calibrated_once_for_all_that_look_at_it_alike(bench_of, calibrated):
    methods = {"a": WANDA, "b": MAGNITUDE, "c": METHODS["least-squares"], "best": BEST}
    run(Study(methods, (0.3, 0.5), (NofM(2, 4),), (0, 1)), bench_of())
    # Two seeds; the recipe with importance has files of its own.
    assert len(calibrated) == 4
    assert all(observation.with_gram for observation in calibrated)


def test_importance_of_another_guidance_scale_is_measured_anew(bench_of, tmp_path):
    run(Study({"best": BEST}, (0.5,), seeds=(0,)), bench_of())
    other = replace(BEST, importance=replace(IMPORTANCE, guidance_scale=6.0))
    study = Study({"best": other}, (0.5,), seeds=(0,))
    results = run(study, bench_of())
    assert facts(results) == facts(run(study, bench_of(folder=tmp_path / "fresh")))


def test_model_and_samples_are_identified_once_and_not_for_every_cell(bench_of, monkeypatch):
    calls = []

    def count(name: str) -> None:
        inner = getattr(study_module, name)
        monkeypatch.setattr(study_module, name, lambda of: (calls.append(name), inner(of))[1])

    count("fingerprint")
    count("digest_of")
    run(STUDY, bench_of())
    assert calls.count("fingerprint") == 14
    assert calls.count("digest_of") == 2


def test_gram_matrices_are_kept_only_if_a_method_reads_them(bench_of, calibrated):
    run(Study({"a": WANDA, "b": MAGNITUDE}, (0.3,), seeds=(0,)), bench_of())
    assert [observation.with_gram for observation in calibrated] == [False]


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (
            Study({"a": WANDA, "b": MAGNITUDE}, (0.5,), (NofM(2, 5),)),
            "16 inputs, which groups of 5",
        ),
        (Study({"a": BEST}, (0.5, 0.97)), "0.97 is out of reach"),
        (Study({"a": WANDA, "b": Recipe(Magnitude(), NofM(2, 4))}, (0.6,)), "2:4 removes"),
    ],
)
def test_what_cannot_be_is_found_before_anything_is_calibrated(
    bench_of, calibrated, study, message
):
    bench = bench_of()
    with pytest.raises(ValueError, match=message):
        run(study, bench)
    assert calibrated == []
    assert bench.measure.calls == 0


def test_importance_without_a_scheduler_is_found_before_anything_is_calibrated(
    bench_of, calibrated
):
    bench = bench_of(scheduler=None)
    with pytest.raises(ValueError, match="best measures importance.*scheduler"):
        run(Study({"wanda": WANDA, "best": BEST}, (0.5,)), bench)
    assert calibrated == []
    assert run(Study({"wanda": WANDA}, (0.5,), seeds=(0,)), bench)


def test_a_value_that_is_infinite_is_read_back(bench_of):
    study = Study({"wanda": WANDA}, (0.5,), seeds=(0,))
    run(study, bench_of(measure=lambda: {"psnr": [math.inf, 3.0]}))
    assert run(study, bench_of())[0].metrics == {"psnr": [math.inf, 3.0]}


def test_names_of_methods_may_be_anything(bench_of, tmp_path):
    study = Study({"a/b: c": WANDA, "a/b; c": MAGNITUDE}, (0.5,), seeds=(0,))
    results = run(study, bench_of())
    assert len(list((tmp_path / "cells").iterdir())) == 2
    assert run(study, bench_of()) == results


def test_predictions_are_judged_on_samples_of_a_seed_that_no_method_was_given(
    bench_of, tiny_dit, samples
):
    result = run(Study({"wanda": WANDA}, (0.5,), seeds=(3, 1)), bench_of())[0]
    pruned = copy.deepcopy(tiny_dit)
    ditprune.prune(pruned, samples(3), family=DiT(), recipe=WANDA.at(0.5))
    errors = []
    for batch in samples(study_module.HELD_OUT_SEED):
        with torch.no_grad():
            for i in range(len(batch.latents)):
                dense, spoiled = (DiT().predict(m, batch.sample(i)) for m in (tiny_dit, pruned))
                errors.append(((spoiled - dense).square().sum() / dense.square().sum()).item())
    assert result.prediction_error == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_no_method_may_be_given_the_samples_that_judge():
    with pytest.raises(ValueError, match="draws the samples that judge"):
        Study({"a": WANDA}, (0.5,), seeds=(0, study_module.HELD_OUT_SEED))


def test_methods_that_differ_in_the_balance_alone_make_a_curve():
    methods = {f"alpha {n}": Recipe(Energy(2.0, n), Layer()) for n in (0.0, 1.0, 3.0)}
    others = {"magnitude": MAGNITUDE, "wanda": WANDA, "repaired": SPARSE_GPT}
    study = Study({**methods, **others}, (0.5,))
    assert study.balances() == {"alpha 0.0": 0.0, "alpha 1.0": 0.5, "alpha 3.0": 1.5}
    assert Study(others, (0.5,)).balances() == {}


def test_the_balance_that_was_found_is_written_down(bench_of):
    searched = Recipe(SearchedEnergy((0.25,)), Layer())
    (result,) = run(Study({"searched": searched}, (0.5,), seeds=(0,)), bench_of())
    assert result.recipe["saliency"] == repr(Energy(1.0, 0.25))
