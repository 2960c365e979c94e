import copy
import json
import os

import lightning as L
import pytest
import torch
from diffusers import DiTTransformer2DModel
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_project import Data, Project, evaluation, pruning, trainer
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ditprune import MaskSet
from ditprune.callbacks import GranularityCallback, PruneCallback, ReportCallback
from ditprune.granularity import CoClusters
from ditprune.importance import TrajectoryImportance
from ditprune.report import spread
from ditprune.saliency import Magnitude
from ditprune.sensitivity import OneLayerSensitivity


@pytest.fixture
def run(tiny_dit, scheduler, tmp_path):
    project = Project(tiny_dit)
    project.scheduler = scheduler
    callbacks = [*pruning(), evaluation(seeds=[0, 1]), ReportCallback()]
    logger = TensorBoardLogger(tmp_path, name="run", version="")
    trainer(tmp_path, callbacks, logger=logger).validate(project, datamodule=Data(scheduler))
    return tmp_path / "run", tiny_dit, callbacks


def test_diffusers_loads_the_pruned_model(run):
    folder, pruned, callbacks = run
    loaded = DiTTransformer2DModel.from_pretrained(folder / "transformer", low_cpu_mem_usage=False)
    assert all(torch.equal(v, pruned.state_dict()[k]) for k, v in loaded.state_dict().items())
    assert callbacks[1].masks.violations(loaded) == []


def test_the_masks_on_disk_are_those_applied(run):
    folder, _, callbacks = run
    assert MaskSet.load(folder / "masks.safetensors").hash() == callbacks[1].masks.hash()
    config = json.loads((folder / "transformer" / "pruning_config.json").read_text())
    assert config["mask_hash"] == callbacks[1].masks.hash()
    assert len(config["layers"]) == 14


def test_the_report_gives_both_sparsities_as_counted_in_the_saved_model(run):
    folder, pruned, _ = run
    report = json.loads((folder / "report.json").read_text())
    zeros = sum(int((p == 0).sum()) for p in pruned.parameters())
    num_parameters = sum(p.numel() for p in pruned.parameters())
    assert report["num_pruned"] == zeros
    assert report["target_sparsity"] == 0.5
    assert report["model_sparsity"] == pytest.approx(zeros / num_parameters)
    assert report["seeds"] == [0, 1]
    assert len(report["metrics"]["pruned"]["fid"]) == 2


def test_the_tensorboard_page_has_scalars_figures_and_pairs(run):
    folder, _, callbacks = run
    page = EventAccumulator(str(folder)).Reload()
    shown = {"layers/sparsity", "layers/row_variation", "images/first pairs"}
    assert shown | {"images/worst pairs by mse"} <= set(page.Tags()["images"])
    assert page.Scalars("fid/pruned")[0].value == pytest.approx(
        sum(callbacks[2].pruned["fid"]) / 2, rel=1e-5
    )
    assert len(page.Scalars("sparsity_by_block/ff.net.0.proj")) == 2


def test_a_sweep_into_one_page_is_a_curve_over_the_sparsity(tiny_dit, scheduler, tmp_path):
    """Lightning's own step is 0 without training, where each run would hide the one before."""
    for sparsity in (0.25, 0.5, 0.75):
        logger = TensorBoardLogger(tmp_path, name="run", version="")
        callbacks = [*pruning(sparsity), evaluation(), ReportCallback()]
        run = trainer(tmp_path, callbacks, logger=logger)
        run.validate(Project(copy.deepcopy(tiny_dit)), datamodule=Data(scheduler))
        logger.experiment.close()
    page = EventAccumulator(str(tmp_path / "run")).Reload()
    for tag in ("fid/pruned", "mse/pruned", "sparsity/targets"):
        assert sorted({event.step for event in page.Scalars(tag)}) == [25, 50, 75], tag
    assert {round(100 * x.value): x.step for x in page.Scalars("sparsity/targets")} == {
        25: 25,
        50: 50,
        75: 75,
    }
    assert {x.step for x in page.Images("images/worst pairs by mse")} == {25, 50, 75}


def test_after_training_numbers_stand_at_its_step(tiny_dit, scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr(L.Trainer, "global_step", 7)
    logger = TensorBoardLogger(tmp_path, name="run", version="")
    run = trainer(tmp_path, [*pruning(), evaluation(), ReportCallback()], logger=logger)
    run.validate(Project(tiny_dit), datamodule=Data(scheduler))
    page = EventAccumulator(str(tmp_path / "run")).Reload()
    assert {event.step for event in page.Scalars("fid/pruned")} == {7}


def test_the_page_for_a_browser_has_the_numbers_of_the_report(run):
    folder, _, _ = run
    page = (folder / "report.html").read_text()
    report = json.loads((folder / "report.json").read_text())
    assert report["mask_hash"] in page
    assert spread(report["metrics"]["pruned"]["fid"]) in page
    assert "worst pairs by mse" in page
    assert page.count('alt="dense"') == page.count('alt="pruned"') == 6 + 12


def test_clusters_are_drawn_from_the_dense_models_scores(tiny_dit, scheduler, tmp_path):
    dense = copy.deepcopy(tiny_dit)
    granularity = GranularityCallback(CoClusters(2), 0.5)
    callbacks = [PruneCallback(saliency=Magnitude()), granularity, ReportCallback()]
    logger = TensorBoardLogger(tmp_path, name="run", version="")
    run = trainer(tmp_path, callbacks, logger=logger)
    run.fit(Project(tiny_dit), datamodule=Data(scheduler))
    layers = granularity.clustered
    names = {layer.target.role.value for layer in layers}
    assert {"attn_q", "mlp_up", "modulation"} <= names
    assert {path.stem for path in (tmp_path / "run" / "clusters").iterdir()} == names
    tags = EventAccumulator(str(tmp_path / "run")).Reload().Tags()["images"]
    assert {f"clusters/{name}" for name in names} <= set(tags)
    for layer in layers:
        weight = dense.get_submodule(layer.target.name).weight
        assert torch.equal(layer.score, weight.detach().abs())


@pytest.mark.parametrize("measure", [TrajectoryImportance, OneLayerSensitivity])
def test_what_importance_was_measured_is_a_figure_and_what_it_took_a_cost(
    tiny_dit, scheduler, tmp_path, measure
):
    project = Project(tiny_dit)
    project.scheduler = scheduler
    callbacks = [*pruning(importance=measure(num_trajectories=2, num_steps=2)), ReportCallback()]
    logger = TensorBoardLogger(tmp_path, name="run", version="")
    trainer(tmp_path, callbacks, logger=logger).fit(project, datamodule=Data(scheduler))
    assert imread(tmp_path / "run" / "importance.png")[..., :3].std() > 0.01
    page = EventAccumulator(str(tmp_path / "run")).Reload()
    assert "layers/importance" in page.Tags()["images"]
    cost = json.loads((tmp_path / "run" / "report.json").read_text())["cost"]
    assert 0 < cost["of which importance, s"] < cost["calibration, s"]


def test_what_was_not_measured_has_no_figure(run):
    folder, _, callbacks = run
    assert not (folder / "importance.png").exists()
    assert callbacks[0].importance_seconds < 0.1


def test_a_run_folder_that_cannot_be_written_to_is_found_before_the_work(
    tiny_dit, scheduler, tmp_path
):
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "run"
    callbacks = [*pruning(), ReportCallback()]
    with pytest.raises(ValueError, match="cannot write to the folder"):
        trainer(root, callbacks).validate(Project(tiny_dit), datamodule=Data(scheduler))
    assert callbacks[0].evidence is None


def test_a_fit_alone_writes_masks_and_model(tiny_dit, scheduler, tmp_path):
    callbacks = [*pruning(), ReportCallback()]
    trainer(tmp_path, callbacks).fit(Project(tiny_dit), datamodule=Data(scheduler))
    assert {"report.md", "report.html", "report.json", "masks.safetensors", "transformer"} <= set(
        os.listdir(tmp_path)
    )
    assert "Not measured" in (tmp_path / "report.md").read_text()
