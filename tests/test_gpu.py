"""What only a CUDA device can show: that nothing stays behind on the CPU."""

import copy

import pytest
import torch
from lightning_project import Data, Project, evaluation, pruning, trainer
from tiny_pipelines import PROMPTS, pipeline_of

import ditprune
from ditprune.callbacks import PruneCallback, ReportCallback
from ditprune.datamodules import PromptDataModule
from ditprune.families import DiT
from ditprune.granularity import ClusteringAware
from ditprune.importance import TrajectoryImportance
from ditprune.lit import PipelineModule
from ditprune.recipe import Recipe
from ditprune.saliency import Energy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_model_on_the_gpu_is_pruned_there_by_samples_from_the_cpu(tiny_dit, calibration):
    on_cpu = copy.deepcopy(tiny_dit)
    recipe = Recipe(Energy(), ClusteringAware(), 0.5)
    masks = ditprune.prune(tiny_dit.cuda(), [calibration], family=DiT(), recipe=recipe).masks
    expected = ditprune.prune(on_cpu, [calibration], family=DiT(), recipe=recipe).masks
    assert masks.sparsity() == 0.5
    same = sum(
        int((mask.cpu() == expected.masks[target]).sum()) for target, mask in masks.masks.items()
    )
    assert same / sum(mask.numel() for mask in masks.masks.values()) > 0.99


def test_masks_from_disk_hold_on_the_gpu(tiny_dit, calibration, tmp_path):
    recipe = Recipe(Energy(), ClusteringAware(), 0.5)
    ditprune.prune(tiny_dit, [calibration], family=DiT(), recipe=recipe).masks.save(
        tmp_path / "masks.safetensors"
    )
    masks = ditprune.MaskSet.load(tmp_path / "masks.safetensors")
    assert masks.violations(tiny_dit.cuda()) == []
    masks.apply_(tiny_dit)


def test_a_whole_run_on_the_gpu_leaves_a_report(tiny_dit, scheduler, tmp_path):
    callbacks = [*pruning(), evaluation(), ReportCallback()]
    run = trainer(tmp_path, callbacks, accelerator="gpu", devices=1)
    run.validate(Project(tiny_dit), datamodule=Data(scheduler))
    assert (tmp_path / "report.json").exists()
    assert callbacks[1].masks.violations(tiny_dit) == []


@pytest.mark.parametrize("kind", ["flux", "sd3", "pixart"])
def test_a_pipeline_leaves_the_gpu_to_its_transformer_when_prompts_are_encoded(kind, tmp_path):
    binning = {"use_resolution_binning": False} if kind == "pixart" else {}
    module = PipelineModule(
        pipeline_of(kind), num_inference_steps=2, height=16, width=16, options=binning
    )
    importance = TrajectoryImportance(num_trajectories=2, num_steps=2)
    pruner, chooser = PruneCallback(importance=importance), pruning()[1]
    measured = evaluation(metrics=[])
    run = trainer(tmp_path, [pruner, chooser, measured], accelerator="gpu", devices=1)
    on_device = []
    drawn = module.trajectory_points

    def look(*args):
        points = drawn(*args)
        on_device.append([module.pipeline.text_encoder.device.type, module.transformer.device.type])
        return points

    module.trajectory_points = look
    run.validate(module, datamodule=PromptDataModule(PROMPTS, num_calibration_samples=4))
    assert on_device == [["cpu", "cuda"]]
    assert measured.pruned["mse"][0] > 0
