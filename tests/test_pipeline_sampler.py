"""Projects whose module holds a pipeline, and cannot draw itself."""

import copy

import lightning as L
import pytest
import torch
from lightning_project import evaluation, trainer
from tiny_pipelines import PROMPTS, pipeline_of

from ditprune.callbacks import GranularityCallback, PruneCallback
from ditprune.datamodules import LabelDataModule, PromptDataModule
from ditprune.evaluation import to_uint8
from ditprune.families import DiT
from ditprune.granularity import Layer
from ditprune.lit import DenoiserModule, PipelineModule
from ditprune.manifest import digest_of_weights
from ditprune.pipeline_sampler import PipelineSampler, sampler_of
from ditprune.sampling import sample_generator
from ditprune.sampling_plan import SamplingPlan


class Holder(L.LightningModule):
    """An existing project's, with calibration samples that somebody else draws."""

    def __init__(self, pipeline, drawer) -> None:
        super().__init__()
        pipeline.set_progress_bar_config(disable=True)
        self.pipe = pipeline
        self.trajectory_points = lambda *args: self._points(drawer, *args)

    def _points(self, drawer, *args):
        drawer.trainer = self.trainer
        return drawer.trajectory_points(*args)

    def validation_step(self, batch, batch_idx):
        pass


def shrunk(kind: str):
    """A pipeline whose defaults are small numbers."""
    pipeline = pipeline_of(kind)
    options = {"num_inference_steps": 2}
    if kind != "dit":
        options |= {"height": 16, "width": 16, "max_sequence_length": 8}
    whole = type(pipeline).__call__
    own = type(f"Small{type(pipeline).__name__}", (type(pipeline),), {})
    own.__call__ = lambda self, *args, **kwargs: whole(self, *args, **{**options, **kwargs})
    pipeline.__class__ = own
    return pipeline


def test_a_pipeline_of_prompts_is_pruned_and_its_images_are_its_own(tmp_path):
    pipeline = shrunk("flux")
    dense = copy.deepcopy(pipeline)
    drawer = PipelineModule(pipeline, num_inference_steps=2, height=16, width=16)
    data = PromptDataModule(PROMPTS, num_calibration_samples=2)
    measured = evaluation(metrics=[], num_samples=3, chunk_size=3)
    callbacks = [PruneCallback(), GranularityCallback(Layer(), 0.5), measured]
    trainer(tmp_path, callbacks).validate(Holder(pipeline, drawer), datamodule=data)
    generators = [sample_generator(0, i) for i in range(3)]
    words = data.evaluation_prompts(3)
    for drawn, samples in ((dense, measured.dense_samples), (pipeline, measured.pruned_samples)):
        own = drawn(prompt=words, generator=copy.copy(generators), output_type="pt").images
        assert torch.equal(samples[0].images, to_uint8(own.float() * 2 - 1))
        generators = [sample_generator(0, i) for i in range(3)]
    assert measured.pruned["mse"][0] > 0


def test_a_pipeline_of_classes_is_asked_for_classes(tmp_path):
    pipeline = shrunk("dit")
    parts = pipeline.transformer, pipeline.scheduler, pipeline.vae
    drawer = DenoiserModule(*parts, num_inference_steps=2)
    data = LabelDataModule(10, num_calibration_samples=2)
    measured = evaluation(metrics=[], num_samples=3, chunk_size=3)
    callbacks = [PruneCallback(DiT()), GranularityCallback(Layer(), 0.5), measured]
    trainer(tmp_path, callbacks).validate(Holder(pipeline, drawer), datamodule=data)
    assert measured.pruned_samples[0].images.shape == (3, 3, 16, 16)
    assert measured.pruned["mse"][0] > 0


def test_images_of_other_weights_are_not_taken_for_these():
    pipeline = shrunk("dit")
    sampler = PipelineSampler(pipeline, {})
    before = digest_of_weights(sampler)
    pipeline.vae.decoder.conv_out.bias.data += 1
    assert digest_of_weights(sampler) != before


def test_a_module_that_draws_itself_does_and_others_are_told_what_they_lack():
    plan = SamplingPlan(torch.arange(2))
    module = PipelineModule(pipeline_of("flux"))
    assert sampler_of(module, plan) is module
    held = torch.nn.Module()
    with pytest.raises(ValueError, match=r"with Module.sample\(.* and there are 0"):
        sampler_of(held, plan)
    vars(held).update(one=pipeline_of("flux"), two=pipeline_of("flux"))
    with pytest.raises(ValueError, match="and there are 2"):
        sampler_of(held, plan)
