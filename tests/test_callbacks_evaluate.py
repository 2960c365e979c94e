import copy
import json

import lightning as L
import pytest
import torch
from lightning_project import Data, Project, Rows, SpatialRows, evaluation, pruning, trainer
from toy_prompts import Lengths, PromptedData

from ditprune.callbacks import ReportCallback
from ditprune.evaluation import to_uint8
from ditprune.metrics import (
    FIDInfinity,
    FrechetDistance,
    InceptionScore,
    KernelInceptionDistance,
    PrecisionRecall,
    SpatialFrechetDistance,
    frechet_distance,
)
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


def test_few_images_for_a_frechet_distance_are_a_warning_before_the_work_and_only_once(
    tiny_dit, scheduler, tmp_path, caplog
):
    project, run = Project(tiny_dit), trainer(tmp_path, [*pruning(), evaluation()])
    run.fit(project, datamodule=Data(scheduler))
    run.validate(project, datamodule=Data(scheduler))
    assert caplog.text.count("FID is measured on 6 images: its bias goes as 1/N") == 1


@pytest.mark.parametrize(
    ("metric", "num_samples", "warned"),
    [
        (FrechetDistance, 9999, True),
        (SpatialFrechetDistance, 9999, True),
        (FrechetDistance, 10_000, False),
        (KernelInceptionDistance, 6, False),
    ],
)
def test_the_warning_is_of_biased_metrics_on_fewer_images_than_published(
    tiny_dit, scheduler, tmp_path, caplog, metric, num_samples, warned
):
    measured = evaluation(extractor=SpatialRows(), metrics=[metric()], num_samples=num_samples)
    run = trainer(tmp_path, [measured])
    run.datamodule = Data(scheduler)
    measured.setup(run, Project(tiny_dit), "validate")
    assert ("do not compare" in caplog.text) == warned


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


def test_without_metrics_the_pruned_images_are_compared_with_the_dense_ones_alone(
    tiny_dit, scheduler, tmp_path
):
    class NoReference(Data):
        def reference_dataloader(self):
            raise ValueError("there are no real images")

    measured = evaluation(metrics=[])
    data = NoReference(scheduler)
    trainer(tmp_path, [*pruning(), measured]).validate(Project(tiny_dit), datamodule=data)
    assert measured.dense == {}
    assert measured.pruned.keys() == {"mse", "psnr", "ssim"}


def test_references_that_are_not_there_are_missed_before_anything_is_drawn(
    tiny_dit, scheduler, tmp_path
):
    class NoReference(Data):
        def reference_dataloader(self):
            raise ValueError("there are no real images")

    class Mute(Project):
        def sample(self, condition, generators):
            raise AssertionError("too late")

    with pytest.raises(ValueError, match="no real images"):
        trainer(tmp_path, [evaluation()]).validate(
            Mute(tiny_dit), datamodule=NoReference(scheduler)
        )


def test_prompt_metrics_score_both_models_with_the_datamodules_prompts(
    tiny_dit, scheduler, tmp_path
):
    dense = copy.deepcopy(tiny_dit)
    measured = evaluation(prompt_metrics=[Lengths()], metrics=[])
    data = PromptedData(scheduler)
    run = trainer(tmp_path, [*pruning(), measured, ReportCallback()])
    [logged] = run.validate(Project(tiny_dit), datamodule=data)
    words = data.evaluation_prompts(6)
    before, after = (Lengths().score(images_of(model), words) for model in (dense, tiny_dit))
    assert measured.dense["lengths/v1"] == [pytest.approx(before.mean().item())]
    assert logged["lengths/v1/pruned"] == pytest.approx(after.mean().item(), rel=1e-5)
    change = measured.results.changes["lengths/v1"]
    assert change.mean == pytest.approx((after - before).mean().item())
    assert change.low < change.mean < change.high
    assert "| lengths ↑ | pruned - dense |" in (tmp_path / "report.md").read_text()
    assert "| mse ↓ | pruned |" in (tmp_path / "report.md").read_text()


def test_prompt_metrics_without_prompts_are_refused_before_anything_is_drawn(
    tiny_dit, scheduler, tmp_path
):
    measured = evaluation(prompt_metrics=[Lengths()])
    with pytest.raises(ValueError, match=r"evaluation_prompts\(num_samples\), and Data has none"):
        trainer(tmp_path, [measured]).validate(Project(tiny_dit), datamodule=Data(scheduler))
    assert not (tmp_path / "samples").exists()


def test_results_are_written_in_full_with_their_protocol(tiny_dit, scheduler, tmp_path):
    measured = evaluation(seeds=[0, 1])
    trainer(tmp_path, [*pruning(), measured]).validate(
        Project(tiny_dit), datamodule=Data(scheduler)
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["protocol"]["features"] == "rows"
    assert results["protocol"]["reference"].startswith("20 images, ")
    assert (results["protocol"]["num_samples"], results["protocol"]["seeds"]) == (6, [0, 1])
    for title, values in (("dense", measured.dense), ("pruned", measured.pruned)):
        assert results["models"][title]["metrics"] == values
        digests = results["models"][title]["images_sha256"]
        assert len(set(digests.values())) == 2
    summary = results["models"]["pruned"]["per_image"]["mse"]
    assert summary["mean"] == pytest.approx(sum(measured.pruned["mse"]) / 2)
    assert summary["low"] < summary["median"] < summary["high"] or summary["median"] > 0


def test_real_images_are_seen_by_the_network_once_and_others_are_others(
    tiny_dit, scheduler, tmp_path
):
    class Counting(Rows):
        seen = 0

        def extract(self, images):
            Counting.seen += len(images)
            return super().extract(images)

    fids = []
    for brighter, seen in ((0.0, 20 + 8), (0.0, 0), (0.1, 20)):
        Counting.seen = 0
        data = Data(scheduler)
        data.images = (data.images + brighter).clamp(-1, 1)
        measured = evaluation()
        measured.extractor = Counting()
        run = trainer(tmp_path, [measured], limit_val_batches=1)
        run.validate(Project(tiny_dit), datamodule=data)
        assert Counting.seen == seen
        fids.append(measured.dense["fid"])
    assert fids[0] == fids[1] != fids[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": [SpatialFrechetDistance()]}, "sFID needs spatial features"),
        ({"metrics": [InceptionScore(num_splits=7)]}, "takes 7 images at least, and num_sam.* 6"),
        ({"metrics": [FrechetDistance()], "num_samples": 1}, "takes 2 images at least"),
        ({"metrics": [PrecisionRecall(num_neighbors=6)]}, "takes 7 images at least"),
        ({"metrics": [KernelInceptionDistance(num_subsets=1)]}, "takes 1000 images at least"),
        ({"metrics": [FIDInfinity()]}, "takes 20 images at least"),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused_before_anything_is_drawn(
    tiny_dit, scheduler, tmp_path, options, message
):
    measured = evaluation(**{"num_samples": 6, **options})
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, [measured]).validate(Project(tiny_dit), datamodule=Data(scheduler))
    assert measured.dense_samples is None


def test_a_number_of_images_is_at_least_one():
    with pytest.raises(ValueError, match="how many images are drawn; got -3"):
        evaluation(num_samples=-3)


def test_a_folder_of_samples_that_is_a_file_is_refused_before_anything_is_drawn(
    tiny_dit, scheduler, tmp_path
):
    (tmp_path / "samples").write_text("")
    measured = evaluation(samples_folder=str(tmp_path / "samples"))
    with pytest.raises(ValueError, match="cannot write to the folder .*samples"):
        trainer(tmp_path, [measured]).validate(Project(tiny_dit), datamodule=Data(scheduler))


def test_a_real_image_that_cannot_be_read_is_told_before_anything_is_drawn(
    tiny_dit, scheduler, tmp_path
):
    class Broken(Data):
        def reference_dataloader(self):
            yield from super().reference_dataloader()
            raise ValueError("cannot read the image last.png")

    measured = evaluation()
    with pytest.raises(ValueError, match="last.png"):
        trainer(tmp_path, [measured]).validate(Project(tiny_dit), datamodule=Broken(scheduler))
    assert measured.dense_samples is None
