import pytest
import torch
from lightning_project import trainer
from tiny_pipelines import pipeline_of

from ditprune.callbacks import GranularityCallback, PruneCallback
from ditprune.datamodules import LabelDataModule
from ditprune.granularity import Layer
from ditprune.importance import TrajectoryImportance
from ditprune.lit import DenoiserModule
from ditprune.sampling import draw_noise, sample_generator


def module_of(pipeline, **options) -> DenoiserModule:
    parts = pipeline.transformer, pipeline.scheduler, pipeline.vae
    return DenoiserModule(*parts, guidance_scale=2.0, num_inference_steps=3, **options)


def test_points_are_those_of_the_pipelines_own_guided_sampling(tmp_path):
    pipeline = pipeline_of("dit")
    module = module_of(pipeline)
    module.trainer = trainer(tmp_path, [])
    points = module.trajectory_points([3, 8], 3, seed=4)
    for index, (point, label) in enumerate(zip(points, [3, 8, 3], strict=True)):
        noise = draw_noise((4, 8, 8), [sample_generator(4, index, "calibration")])
        for latents, timestep in seen_by(pipeline, label, noise):
            if timestep == point.timestep.item():
                assert torch.allclose(point.latents, latents, atol=1e-5)
                break
        else:
            pytest.fail("a step that the pipeline does not take")
        assert point.condition.tolist() == [label]
    assert len({point.timestep.item() for point in points}) == 3


def seen_by(pipeline, label: int, noise) -> list[tuple[torch.Tensor, float]]:
    """What diffusers' pipeline shows its transformer, beginning with this noise."""
    seen = []

    def see(model, args, kwargs):
        seen.append((args[0][:1].clone(), kwargs["timestep"][0].item()))

    handle = pipeline.transformer.register_forward_pre_hook(see, with_kwargs=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda *_, **__: noise)
        pipeline([label], guidance_scale=2.0, num_inference_steps=3, output_type="np")
    handle.remove()
    return seen


def test_a_class_conditional_model_is_pruned_without_any_image(tmp_path):
    module = module_of(pipeline_of("dit"))
    importance = TrajectoryImportance(num_trajectories=2, num_steps=2)
    callbacks = [PruneCallback(importance=importance), GranularityCallback(Layer(), 0.5)]
    data = LabelDataModule(10, num_calibration_samples=4)
    trainer(tmp_path, callbacks).validate(module, datamodule=data)
    assert callbacks[1].masks.sparsity() == 0.5
    assert callbacks[1].masks.violations(module.transformer) == []
    assert len(list((tmp_path / "points").rglob("*.safetensors"))) == 4


def test_every_class_comes_once_before_any_comes_again():
    data = LabelDataModule(10, num_calibration_samples=4)
    assert sorted(data.evaluation_conditions(20).tolist()) == sorted([*range(10)] * 2)
    assert len(set(data.evaluation_conditions(7).tolist())) == 7
    assert data.evaluation_conditions(4).tolist() == data.calibration_conditions()
    assert data.evaluation_conditions(10).tolist() != list(range(10))
    assert LabelDataModule(10, seed=1).labels.tolist() != data.labels.tolist()
    assert len(LabelDataModule(3, num_calibration_samples=8).calibration_conditions()) == 3


def test_a_model_without_classes_is_refused():
    with pytest.raises(ValueError, match="num_classes must be at least 1; got 0"):
        LabelDataModule(0)
