import copy
from dataclasses import replace

import lightning as L
import pytest
import torch
from lightning_project import Data, Project, pruning, trainer

import ditprune
from ditprune.callbacks import GranularityCallback, PruneCallback
from ditprune.families import DiT
from ditprune.granularity import Layer
from ditprune.importance import TrajectoryImportance
from ditprune.recipe import Recipe
from ditprune.saliency import Energy


def expected_masks(model, scheduler) -> ditprune.MaskSet:
    return ditprune.prune(
        copy.deepcopy(model),
        Data(scheduler).calibration_dataloader(),
        family=DiT(),
        recipe=Recipe(Energy(), Layer(), 0.5),
    ).masks


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_trainer_finds_the_masks_that_python_finds(tiny_dit, scheduler, tmp_path, verb):
    expected = expected_masks(tiny_dit, scheduler)
    callbacks = pruning()
    getattr(trainer(tmp_path, callbacks), verb)(Project(tiny_dit), datamodule=Data(scheduler))
    assert callbacks[1].masks.hash() == expected.hash()
    assert expected.violations(tiny_dit) == []


def test_the_order_of_the_callbacks_does_not_matter(tiny_dit, scheduler, tmp_path):
    expected = expected_masks(tiny_dit, scheduler)
    callbacks = pruning()[::-1]
    trainer(tmp_path, callbacks).fit(Project(tiny_dit), datamodule=Data(scheduler))
    assert callbacks[0].masks.hash() == expected.hash()


def test_a_fit_trains_nothing(tiny_dit, scheduler, tmp_path):
    dense = copy.deepcopy(tiny_dit.state_dict())
    project, callbacks = Project(tiny_dit), pruning()
    fit = trainer(tmp_path, callbacks)
    fit.fit(project, datamodule=Data(scheduler))
    kept = {f"{t.name}.weight": mask for t, mask in callbacks[1].masks.masks.items()}
    for name, value in tiny_dit.state_dict().items():
        kept_values = dense[name] * kept[name] if name in kept else dense[name]
        assert torch.equal(value, kept_values)
    assert project.steps == []
    assert fit.optimizers == []
    assert all(p.grad is None and p.requires_grad for p in project.parameters())


def test_validation_after_a_fit_keeps_the_masks_and_does_not_calibrate_again(
    tiny_dit, scheduler, tmp_path
):
    project, callbacks = Project(tiny_dit), pruning()
    run = trainer(tmp_path, callbacks)
    run.fit(project, datamodule=Data(scheduler))
    masks, scores = callbacks[1].masks, callbacks[0].evidence
    run.validate(project, datamodule=Data(scheduler))
    assert callbacks[1].masks is masks
    assert callbacks[0].evidence is scores
    assert project.steps == ["validate"] * 4


def test_the_trainer_can_train_afterwards(tiny_dit, scheduler, tmp_path):
    project = Project(tiny_dit)
    run = trainer(tmp_path, pruning())
    run.fit(project, datamodule=Data(scheduler))
    run.callbacks = []
    run.fit(project, datamodule=Data(scheduler))
    assert project.steps.count("train") == 4
    assert "optimizers" in project.steps


def test_weights_pruned_in_validation_can_be_fine_tuned(tiny_dit, scheduler, tmp_path):
    callbacks = pruning()
    trainer(tmp_path, callbacks).validate(Project(tiny_dit), datamodule=Data(scheduler))
    weight = tiny_dit.transformer_blocks[0].ff.net[2].weight
    mask = next(m for t, m in callbacks[1].masks.masks.items() if t.name.endswith("0.ff.net.2"))
    (weight * mask).square().sum().backward()
    assert not weight.is_inference()
    assert weight.grad is not None


def test_a_failed_fit_gives_the_trainer_back_as_it_was(tiny_dit, scheduler, tmp_path):
    run = trainer(tmp_path, pruning(), num_sanity_val_steps=2)
    empty = Data(scheduler, num_calibration_samples=0)
    with pytest.raises(ValueError, match="calibration set is empty"):
        run.fit(Project(tiny_dit), datamodule=empty)
    assert run.limit_train_batches == 1.0
    assert run.num_sanity_val_steps == 2
    assert "setup_optimizers" not in vars(run.strategy)


def test_a_wrong_module_path_lists_what_there_is(tiny_dit, scheduler, tmp_path):
    with pytest.raises(ValueError, match=r"no module 'unet'(.|\n)*transformer \(DiT"):
        trainer(tmp_path, pruning(module="unet")).fit(Project(tiny_dit), datamodule=Data(scheduler))


def test_a_datamodule_without_calibration_samples_is_refused_at_once(tiny_dit, tmp_path):
    class Plain(L.LightningDataModule):
        train_dataloader = val_dataloader = Data.train_dataloader

    with pytest.raises(ValueError, match=r"calibration_dataloader\(\), and Plain has none"):
        trainer(tmp_path, pruning()).fit(Project(tiny_dit), datamodule=Plain())


def test_a_granularity_without_scores_is_refused_at_once(tiny_dit, scheduler, tmp_path):
    run = trainer(tmp_path, [GranularityCallback(Layer())])
    with pytest.raises(ValueError, match="takes a PruneCallback, and the trainer has none"):
        run.fit(Project(tiny_dit), datamodule=Data(scheduler))


def test_no_timestep_bins_are_refused():
    with pytest.raises(ValueError, match="num_timestep_bins must be at least 1; got 0"):
        PruneCallback(num_timestep_bins=0)


def test_a_calibration_is_used_again_from_its_run_folder(tiny_dit, scheduler, tmp_path):
    first, again = pruning(), pruning(sparsity=0.7, stats=str(tmp_path))
    trainer(tmp_path, first).fit(Project(copy.deepcopy(tiny_dit)), datamodule=Data(scheduler))
    expected = pruning(sparsity=0.7)
    trainer(tmp_path / "other", expected).fit(
        Project(copy.deepcopy(tiny_dit)), datamodule=Data(scheduler)
    )

    class Unwilling(Data):
        def calibration_dataloader(self):
            return []

    trainer(tmp_path, again).fit(Project(tiny_dit), datamodule=Unwilling(scheduler))
    assert again[1].masks.hash() == expected[1].masks.hash()


def test_importance_of_another_guidance_scale_is_not_used_again(tiny_dit, scheduler, tmp_path):
    measure = TrajectoryImportance(1.5, num_trajectories=1, num_steps=1)
    other = replace(measure, guidance_scale=4.0)
    project = Project(tiny_dit)
    project.scheduler = scheduler
    first = pruning(importance=measure)[:1]
    trainer(tmp_path, first).fit(project, datamodule=Data(scheduler))
    stats = str(tmp_path)
    again, wrong = (pruning(stats=stats, importance=i)[:1] for i in (measure, other))
    trainer(tmp_path, again).fit(project, datamodule=Data(scheduler))
    matrices, expected = again[0].evidence.importance, first[0].evidence.importance
    assert all(torch.equal(matrices[target], expected[target]) for target in expected)
    with pytest.raises(ValueError, match=r"scale=1\.5.*and importance=.*scale=4\.0.*asked for"):
        trainer(tmp_path, wrong).fit(project, datamodule=Data(scheduler))


def test_the_calibration_of_another_model_is_refused(tiny_dit, scheduler, tmp_path):
    trainer(tmp_path, pruning()).fit(Project(copy.deepcopy(tiny_dit)), datamodule=Data(scheduler))
    tiny_dit.transformer_blocks[0].ff.net[2].weight.data.mul_(2)
    again = trainer(tmp_path, pruning(stats=str(tmp_path)))
    with pytest.raises(ValueError, match="statistics of another model"):
        again.fit(Project(tiny_dit), datamodule=Data(scheduler))


def test_a_transformer_made_in_configure_model_is_found_with_its_family(
    tiny_dit, scheduler, tmp_path
):
    class Late(Project):
        def __init__(self) -> None:
            super().__init__(None)

        def configure_model(self) -> None:
            self.net = tiny_dit

    expected = expected_masks(tiny_dit, scheduler)
    callbacks = [PruneCallback(num_timestep_bins=1), GranularityCallback(Layer(), 0.5)]
    project = Late()
    trainer(tmp_path, callbacks).validate(project, datamodule=Data(scheduler))
    assert callbacks[0].found(project).path == "net"
    assert callbacks[0].family == DiT()
    assert callbacks[1].masks.hash() == expected.hash()
