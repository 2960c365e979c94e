import copy
import csv
import os

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_project import Data, Project, evaluation, pruning, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

import ditprune
from ditprune.callbacks import StudyCallback
from ditprune.datamodules import CalibrationDataset, collate
from ditprune.families import DiT
from ditprune.granularity import Layer, NofM, Row
from ditprune.recipe import Recipe
from ditprune.saliency import Energy, Magnitude

METHODS = {"wanda": Recipe(Energy(1.0, 1.0), Row()), "magnitude": Recipe(Magnitude(), Layer())}


class SeededData(Data):
    def calibration_dataloader(self, seed=None):
        dataset = CalibrationDataset(
            self.images, self.labels, self.scheduler, self.num_calibration_samples, seed or 0
        )
        return DataLoader(dataset, self.batch_size, collate_fn=collate)


def study(**options) -> StudyCallback:
    settings = {
        "methods": METHODS,
        "sparsities": [0.5],
        "patterns": [NofM(2, 4)],
        "calibration_seeds": [0, 1],
    }
    return StudyCallback(**{**settings, **options})


@pytest.fixture
def project(tiny_dit, scheduler):
    project = Project(tiny_dit)
    project.scheduler = scheduler
    return project


def test_a_study_writes_tables_and_curves_and_leaves_the_model_dense(project, scheduler, tmp_path):
    dense = copy.deepcopy(project.state_dict())
    callbacks = [evaluation(seeds=[0, 1]), study()]
    logger = TensorBoardLogger(tmp_path, name="run", version="")
    run = trainer(tmp_path, callbacks, logger=logger, limit_val_batches=1)
    run.validate(project, datamodule=SeededData(scheduler))
    assert all(torch.equal(value, dense[name]) for name, value in project.state_dict().items())
    folder = tmp_path / "run"
    assert {"study.md", "study.csv", "fid.png", "psnr.png", "cells", "statistics"} <= set(
        os.listdir(folder)
    )
    assert len(callbacks[1].results) == 8
    with (folder / "study.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8 * 2
    page = (folder / "study.md").read_text()
    assert "6 for each of 2 sampling seeds" in page
    assert "over 2 calibration seeds [0, 1]" in page
    tags = EventAccumulator(str(folder)).Reload().Tags()
    assert {"study/fid", "study/psnr"} <= set(tags["images"])


def test_every_calibration_seed_draws_its_own_samples(project, scheduler, tmp_path):
    callbacks = [study(patterns=[], calibration_seeds=[3, 4]), evaluation()]
    data = SeededData(scheduler)
    trainer(tmp_path, callbacks, limit_val_batches=1).validate(project, datamodule=data)
    hashes = {(r.method, r.seed): r.mask_hash for r in callbacks[0].results}
    assert hashes["magnitude", 3] == hashes["magnitude", 4]
    for seed in (3, 4):
        model = copy.deepcopy(project.transformer)
        batches = list(data.calibration_dataloader(seed))
        outcome = ditprune.prune(model, batches, family=DiT(), recipe=METHODS["wanda"])
        assert hashes["wanda", seed] == outcome.masks.hash()


def test_a_second_study_of_the_same_draws_nothing_but_the_dense_images(
    project, scheduler, tmp_path
):
    tables = []
    for _ in range(2):
        callbacks = [evaluation(), study()]
        run = trainer(tmp_path, callbacks, limit_val_batches=1)
        run.validate(project, datamodule=SeededData(scheduler))
        tables.append((tmp_path / "study.md").read_text())
    assert tables[0] == tables[1]
    assert callbacks[0].pruned_samples is None


class Unseeded(Data):
    pass


class Resized(Data):
    def calibration_dataloader(self, batch_size=4):
        return super().calibration_dataloader()


class Uncalibrated(Data):
    calibration_dataloader = None


@pytest.mark.parametrize("kind", [Unseeded, Resized, Uncalibrated])
def test_a_datamodule_without_a_seed_is_refused_before_anything_is_drawn(
    project, scheduler, tmp_path, kind
):
    callbacks = [evaluation(), study()]
    run = trainer(tmp_path, callbacks, limit_val_batches=1)
    with pytest.raises(ValueError, match=rf"calibration_dataloader\(seed\).*{kind.__name__}"):
        run.validate(project, datamodule=kind(scheduler))
    assert callbacks[0].dense is None
    assert not (tmp_path / "samples").exists()


def test_a_study_without_an_evaluation_is_refused(project, scheduler, tmp_path):
    with pytest.raises(ValueError, match="takes a EvaluationCallback, and the trainer has none"):
        trainer(tmp_path, [study()]).validate(project, datamodule=SeededData(scheduler))


@pytest.mark.parametrize(
    ("pruners", "names"),
    [
        (pruning(), "PruneCallback and GranularityCallback"),
        (pruning()[:1], "PruneCallback"),
        (pruning()[1:], "GranularityCallback"),
    ],
)
def test_a_study_beside_callbacks_that_prune_is_refused_before_any_work(
    project, scheduler, tmp_path, pruners, names
):
    run = trainer(tmp_path, [evaluation(), study(), *pruners], limit_val_batches=1)
    with pytest.raises(ValueError, match=rf"the trainer has {names} too.*leave them out"):
        run.validate(project, datamodule=SeededData(scheduler))
    assert not (tmp_path / "samples").exists()
    assert not (tmp_path / "statistics").exists()


def test_a_study_in_a_fit_is_refused_before_any_work(project, scheduler, tmp_path):
    dense = copy.deepcopy(project.state_dict())
    run = trainer(tmp_path, [evaluation(), study()])
    with pytest.raises(ValueError, match=r"runs in trainer\.validate.*this is trainer\.fit"):
        run.fit(project, datamodule=SeededData(scheduler))
    assert project.steps == []
    assert not (tmp_path / "samples").exists()
    assert all(torch.equal(value, dense[name]) for name, value in project.state_dict().items())


def test_an_impossible_setting_stops_before_anything_is_calibrated(project, scheduler, tmp_path):
    run = trainer(tmp_path, [evaluation(), study(patterns=[NofM(2, 5)])], limit_val_batches=1)
    with pytest.raises(ValueError, match="groups of 5 do not divide"):
        run.validate(project, datamodule=SeededData(scheduler))
    assert not (tmp_path / "statistics").exists()
