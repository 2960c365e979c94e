from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from lightning_project import Rows, trainer
from tiny_pipelines import PROMPTS, pipeline_of
from torch import nn

from ditprune.callbacks import EvaluationCallback, GranularityCallback, PruneCallback
from ditprune.datamodules import PromptDataModule
from ditprune.diffusers_pipeline import load_pipeline
from ditprune.evaluation import Sampler
from ditprune.families import SD3, Flux
from ditprune.granularity import Layer
from ditprune.importance import TrajectoryImportance
from ditprune.lit import PipelineModule
from ditprune.sampling import sample_generator


def module_of(kind: str, guidance_scale: float = 3.0, **options) -> PipelineModule:
    settings = {"num_inference_steps": 3, "height": 16, "width": 16, **options}
    return PipelineModule(pipeline_of(kind), guidance_scale=guidance_scale, **settings)


class Trainer:
    """As much of one as a module asks for."""

    log_dir = None

    def __init__(self, root) -> None:
        self.datamodule = PromptDataModule(PROMPTS)
        self.default_root_dir = root


def test_images_of_a_pruned_pipeline_are_measured(tmp_path):
    module = module_of("flux")
    dense = {name: x.clone() for name, x in module.transformer.state_dict().items()}
    data = PromptDataModule(PROMPTS, num_calibration_samples=4)
    measured = EvaluationCallback(Rows(), metrics=[], num_samples=3, chunk_size=2)
    pruner = PruneCallback(family=module.family, module="transformer")
    chooser = GranularityCallback(Layer(), 0.5)
    trainer(tmp_path, [pruner, chooser, measured]).validate(module, datamodule=data)
    targets = module.family.targets(module.transformer)
    for target in targets:
        weight = module.pipeline.transformer.get_submodule(target.name).weight
        assert int((weight == 0).sum()) == weight.numel() // 2, target.name
    changed = {
        n for n, x in module.transformer.state_dict().items() if not torch.equal(x, dense[n])
    }
    assert changed == {f"{target.name}.weight" for target in targets}
    assert measured.pruned["mse"][0] > 0
    assert measured.dense == {}
    assert not torch.equal(
        *(s[0].images for s in (measured.dense_samples, measured.pruned_samples))
    )
    assert len(list((tmp_path / "prompts").glob("*.safetensors"))) == 1
    assert len(list((tmp_path / "prompts").glob("points-*/*.safetensors"))) == 4


def test_errors_are_weighed_by_what_they_do_to_the_images_along_the_pipelines_schedule(tmp_path):
    module = module_of("flux", options={"max_sequence_length": 8})
    importance = TrajectoryImportance(guidance_scale=1.0, num_trajectories=2, num_steps=2)
    pruner = PruneCallback(family=Flux(), importance=importance)
    chooser = GranularityCallback(Layer(), 0.5)
    data = PromptDataModule(PROMPTS, num_calibration_samples=3)
    trainer(tmp_path, [pruner, chooser]).validate(module, datamodule=data)
    assert len(pruner.evidence.importance) == len(Flux().targets(module.transformer))
    assert chooser.masks.violations(module.transformer) == []


def test_a_pruned_model_is_calibrated_with_the_dense_ones_samples(tmp_path):
    module, data = module_of("sd3"), PromptDataModule(PROMPTS, num_calibration_samples=4)
    callbacks = [PruneCallback(family=SD3()), GranularityCallback(Layer(), 0.5)]
    trainer(tmp_path, callbacks).validate(module, datamodule=data)
    kept = [batch.latents for batch in data.calibration_dataloader()]
    again = module.trajectory_points(data.prompts, 4, 0)  # of the pruned model
    assert torch.equal(kept[0], again[0].latents)
    assert not torch.allclose(kept[-1], again[-1].latents, atol=1e-4)


@pytest.mark.parametrize(("kind", "scale"), [("flux", 3.0), ("sd3", 3.0), ("sd3", 1.0)])
def test_images_are_the_pipelines_own_for_the_prompts_that_are_asked_for(kind, scale, tmp_path):
    module = module_of(kind, scale)
    module.trainer = Trainer(tmp_path)
    assert isinstance(module, Sampler)
    images = module.sample(torch.tensor([1]), [sample_generator(0, 7)])
    expected = module.pipeline(
        [module.trainer.datamodule.prompts[1]],
        generator=[sample_generator(0, 7)],
        guidance_scale=scale,
        num_inference_steps=3,
        height=16,
        width=16,
        output_type="np",
    ).images
    assert torch.allclose(images.permute(0, 2, 3, 1), torch.tensor(expected) * 2 - 1, atol=1e-5)
    assert images.min() < 0


@pytest.mark.parametrize(
    ("kind", "scale", "is_guided"),
    [("flux", 3.0, False), ("sd3", 3.0, True), ("sd3", 1.0, False)],
)
def test_samples_have_a_null_branch_where_the_pipeline_has_one(kind, scale, is_guided, tmp_path):
    module = module_of(kind, scale)
    module.trainer = Trainer(tmp_path)
    [batch] = module.trajectory_points(PROMPTS, 1, 0)
    assert ("null_encoder_hidden_states" in batch.condition) is is_guided
    assert batch.condition.get("guidance", torch.tensor([scale])).item() == scale
    assert len(module.scheduler.timesteps) == 3


def test_a_negative_prompt_is_repeated_for_every_image(tmp_path):
    module = module_of("sd3", options={"negative_prompt": "dog"})
    module.trainer = Trainer(tmp_path)
    generators = [sample_generator(0, i) for i in range(2)]
    assert module.sample(torch.tensor([0, 1]), generators).shape == (2, 3, 16, 16)


def test_only_the_transformer_is_a_part_of_the_module():
    module = module_of("sd3")
    assert {name.split(".")[0] for name in module.state_dict()} == {"transformer"}
    assert module.transformer is module.pipeline.transformer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_is_loaded_in_the_dtype_it_is_stored_in(dtype, tmp_path):
    pipeline_of("sd3").to(dtype).save_pretrained(tmp_path)
    module = PipelineModule.from_pretrained(str(tmp_path), num_inference_steps=2)
    assert module.transformer.dtype == module.pipeline.text_encoder.dtype == dtype
    assert module.family == SD3()
    module.trainer = Trainer(tmp_path)
    [point] = module.trajectory_points(PROMPTS, 1, 0)
    assert point.latents.dtype == dtype
    assert torch.isfinite(module.sample(torch.tensor([0]), [torch.Generator()])).all()


def test_what_is_no_pipeline_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"/nowhere/at/all': there is no such folder"):
        load_pipeline("/nowhere/at/all")
    with pytest.raises(ValueError, match="save_pretrained wrote"):
        load_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "X", "vae": ["diffusers", "Y"]}')
    with pytest.raises(ValueError, match="neither a transformer nor a unet.*parts are: vae"):
        load_pipeline(str(tmp_path))


@pytest.mark.parametrize("source", ["./a", "../a/b", "/a", "~/a", "a/b/c", "tests/a", "a b"])
def test_what_can_only_be_a_folder_is_not_looked_for_on_the_hub(source, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    monkeypatch.setattr(DiffusionPipeline, "load_config", pytest.fail)
    monkeypatch.setattr("ditprune.diffusers_pipeline.is_reachable", pytest.fail)
    with pytest.raises(ValueError, match="there is no such folder$"):
        load_pipeline(source)


@pytest.mark.parametrize("error", [ConnectionError, LookupError])
def test_without_a_network_nothing_is_tried_again_and_again(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    asked = []

    def look(source, local_files_only):
        asked.append(local_files_only)
        raise OSError("not in the cache")

    monkeypatch.setattr("ditprune.diffusers_pipeline.model_info", fail)
    monkeypatch.setattr(DiffusionPipeline, "load_config", look)
    with pytest.raises(ValueError, match="Check the name and the network"):
        load_pipeline("owner/name")
    assert asked == [True]


def test_files_of_a_folder_that_are_missing_or_cut_short_are_named(tmp_path):
    pipeline_of("pixart").save_pretrained(tmp_path, max_shard_size="20KB")
    [*_, shard] = sorted((tmp_path / "transformer").glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=f"get them again: {shard}$"):
        load_pipeline(str(tmp_path))
    shard.unlink()
    with pytest.raises(ValueError, match=f"file named {shard}.*with all of its files"):
        load_pipeline(str(tmp_path))
    shard.write_bytes(whole)
    assert load_pipeline(str(tmp_path)).transformer.dtype == torch.float32


def test_a_class_that_diffusers_does_not_have_is_named(tmp_path):
    pipeline_of("pixart").save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("PixArtTransformer2DModel", "NewModel"))
    with pytest.raises(ValueError, match="NewModel"):
        load_pipeline(str(tmp_path))


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "it is gated: accept its terms at https://huggingface.co/a/b"), (None, "the network")],
)
def test_what_the_hub_does_not_give_is_told(status, message, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("it failed") from (gated() if status else None)

    monkeypatch.setattr(DiffusionPipeline, "load_config", refuse)
    monkeypatch.setattr("ditprune.diffusers_pipeline.is_reachable", lambda source: True)
    with pytest.raises(ValueError, match=message):
        load_pipeline("a/b")


def gated() -> Exception:
    from huggingface_hub.errors import GatedRepoError

    return GatedRepoError.__new__(GatedRepoError)


def test_a_transformer_that_no_family_knows_is_refused():
    class Unknown(nn.Module):
        pass

    pipeline = pipeline_of("sd3")
    pipeline.transformer = Unknown()
    with pytest.raises(ValueError, match=r"no family knows Unknown(.|\n)*FluxTransformer2DModel"):
        PipelineModule(pipeline)
