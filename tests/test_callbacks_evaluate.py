import copy

import lightning as L
import pytest
import torch
from lightning_project import Data, Project, Rows, evaluation, pruning, trainer

from ditprune.callbacks import ReportCallback
from ditprune.evaluation import to_uint8
from ditprune.metrics import frechet_distance
from ditprune.sampling import sample_generator


def images_of(model) -> torch.Tensor:
    """The same samples in one batch, without callback or cache."""
    generators = [sample_generator(0, i) for i in range(6)]
    with torch.no_grad():
        return to_uint8(Project(model.eval()).sample(torch.arange(6), generators))


def fid(images, scheduler) -> float:
    real = torch.cat(list(Data(scheduler).reference_dataloader()))
    pools = (Rows().extract(x).pool for x in (images, real))
    return frechet_distance(*pools).item()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_dense_and_pruned_are_each_measured_on_their_own_images(
    tiny_dit, scheduler, tmp_path, order
):
    dense = copy.deepcopy(tiny_dit)
    callbacks = [*pruning(), evaluation()]
    run = trainer(tmp_path, [callbacks[i] for i in order])
    [logged] = run.validate(Project(tiny_dit), datamodule=Data(scheduler))
    measured = callbacks[2]
    assert measured.dense["fid"] == [pytest.approx(fid(images_of(dense), scheduler), rel=1e-6)]
    assert measured.pruned["fid"] == [pytest.approx(fid(images_of(tiny_dit), scheduler), rel=1e-6)]
    pairs = (images_of(dense).double() - images_of(tiny_dit).double()) / 255
    assert measured.pruned["mse"] == [pytest.approx(pairs.square().mean().item())]
    assert logged["fid/pruned"] == pytest.approx(measured.pruned["fid"][0], rel=1e-5)


def test_images_are_drawn_in_evaluation_mode_also_in_a_fit(tiny_dit, scheduler, tmp_path):
    dense = copy.deepcopy(tiny_dit)
    measured = evaluation()
    project = Project(tiny_dit.train())
    trainer(tmp_path, [*pruning(), measured]).fit(project, datamodule=Data(scheduler))
    assert torch.equal(measured.dense_samples[0].images, images_of(dense))


def test_a_fit_measures_the_dense_model_and_validation_the_pruned_one(
    tiny_dit, scheduler, tmp_path
):
    measured = evaluation(seeds=[0, 1])
    run = trainer(tmp_path, [*pruning(), measured])
    project = Project(tiny_dit)
    run.fit(project, datamodule=Data(scheduler))
    assert measured.pruned is None
    dense = dict(measured.dense)
    run.validate(project, datamodule=Data(scheduler))
    assert measured.dense == dense
    assert len(measured.pruned["fid"]) == 2


def test_without_pruning_the_model_is_measured_as_it_is(tiny_dit, scheduler, tmp_path):
    measured = evaluation()
    trainer(tmp_path, [measured]).validate(Project(tiny_dit), datamodule=Data(scheduler))
    assert torch.equal(measured.dense_samples[0].images, images_of(tiny_dit))
    assert measured.pruned is None


def test_dense_images_are_found_again_by_the_next_run(tiny_dit, scheduler, tmp_path):
    class Counting(Project):
        num_drawn = 0

        def sample(self, condition, generators):
            Counting.num_drawn += len(condition)
            return super().sample(condition, generators)

    for drawn in (8 + 8, 4 + 8):  # all chunks of both; then only the dense model's first
        Counting.num_drawn = 0
        model = copy.deepcopy(tiny_dit)
        sparsity = 0.5 if drawn == 16 else 0.7
        callbacks = [*pruning(sparsity), evaluation()]
        trainer(tmp_path, callbacks).validate(Counting(model), datamodule=Data(scheduler))
        assert Counting.num_drawn == drawn


def test_a_module_that_cannot_sample_is_refused_at_once(tiny_dit, scheduler, tmp_path):
    class Mute(L.LightningModule):
        validation_step = Project.validation_step

    with pytest.raises(ValueError, match=r"Mute\.sample\(condition, generators\)"):
        trainer(tmp_path, [evaluation()]).validate(Mute(), datamodule=Data(scheduler))


def test_a_datamodule_without_references_is_refused_at_once(tiny_dit, tmp_path):
    class Plain(L.LightningDataModule):
        val_dataloader = Data.train_dataloader

    with pytest.raises(ValueError, match=r"reference_dataloader\(\), and Plain lacks one"):
        trainer(tmp_path, [evaluation()]).validate(Project(tiny_dit), datamodule=Plain())


def test_the_feature_network_is_no_part_of_the_module(tiny_dit, scheduler, tmp_path):
    project = Project(tiny_dit)
    names = set(project.state_dict())
    trainer(tmp_path, [*pruning(), evaluation()]).validate(project, datamodule=Data(scheduler))
    assert set(project.state_dict()) == names


def test_a_callback_that_joins_after_the_pruning_measures_the_pruned_model_alone(
    tiny_dit, scheduler, tmp_path
):
    project, callbacks = Project(tiny_dit), pruning()
    trainer(tmp_path, callbacks).fit(project, datamodule=Data(scheduler))
    late = evaluation()
    run = trainer(tmp_path, [*callbacks, late, ReportCallback()])
    run.validate(project, datamodule=Data(scheduler))
    assert late.dense is None
    assert late.pruned == {"fid": [pytest.approx(fid(images_of(tiny_dit), scheduler), rel=1e-6)]}
    assert "| fid ↓ |  | " in (tmp_path / "report.md").read_text()
