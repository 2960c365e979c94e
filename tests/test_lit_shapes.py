"""What trained shapes-flux: that it trains what its pipeline then draws with."""

import ast
import subprocess
import sys

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch.nn import functional as F

from ditprune.datamodules import ShapeLatentsDataModule, ShapesDataModule
from ditprune.lit.shapes import (
    AutoencoderModule,
    ShapesClipModule,
    ShapesReaderModule,
    TextToImageModule,
    shifted,
)
from ditprune.metrics import ClipScore
from ditprune.zoo.pretrained import locate
from ditprune.zoo.shapes import Latents, Pictures


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return next(iter(ShapesDataModule(batch_size=8).val_dataloader()))


@pytest.fixture(scope="module")
def module() -> TextToImageModule:
    torch.manual_seed(0)
    return TextToImageModule("shapes-flux/vae", "shapes-judges/clip")


@pytest.fixture(scope="module")
def latents() -> Latents:
    data = ShapeLatentsDataModule(
        "shapes-flux/vae", num_training_pictures=20, num_evaluation_pictures=8, batch_size=8
    )
    data.setup("fit")
    assert [len(batch.captions) for batch in data.train_dataloader()] == [8, 8, 4]
    return next(iter(data.val_dataloader()))


@pytest.fixture
def heard(module, monkeypatch):
    """What the transformer is called with; it answers with the noise that it was given."""
    calls = []

    def forward(**arguments):
        calls.append(arguments)
        return Transformer2DModelOutput(sample=torch.zeros_like(arguments["hidden_states"]))

    monkeypatch.setattr(module.transformer, "forward", forward)
    return calls


def test_it_hears_what_the_pipeline_tells_its_transformer(module, latents, heard):
    module.log = lambda *args, **options: None
    module.validation_step(latents, 0)
    trained = heard.pop()
    pipeline = module.pipeline
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        prompt=list(latents.captions),
        height=64,
        width=64,
        num_inference_steps=1,
        max_sequence_length=16,
        output_type="latent",
    )
    drawn = heard.pop()
    for name in ("encoder_hidden_states", "pooled_projections", "txt_ids", "img_ids"):
        # Attention has another kernel where gradients are wanted.
        assert torch.allclose(trained[name], drawn[name], atol=1e-5), name
    assert trained["hidden_states"].shape == drawn["hidden_states"].shape
    assert drawn["timestep"].unique().item() == 1
    assert trained["timestep"].max() <= 1


def test_its_latents_are_what_the_pipeline_decodes(module, latents, pictures):
    assert latents.captions == pictures.captions
    assert latents.latents.mean().abs() < 0.3
    assert 0.7 < latents.latents.std() < 1.3
    config = module.vae.config
    with torch.no_grad():
        unscaled = latents.latents / config.scaling_factor + config.shift_factor
        decoded = module.vae.decode(unscaled).sample
    assert F.mse_loss(decoded, pictures.images) < 0.01


def test_latents_are_packed_as_the_pipeline_unpacks_them(module, latents, heard):
    module._loss(latents, torch.zeros(8), torch.randn)
    unpacked = module.pipeline._unpack_latents(heard[0]["hidden_states"], 64, 64, 8)
    assert torch.equal(unpacked, latents.latents)


def test_the_flow_goes_from_the_picture_to_noise(module, latents, heard):
    """At time 0 the transformer sees the picture, at time 1 the noise it must point to."""
    nothing = latents._replace(latents=torch.zeros(8, 8, 8, 8))
    noise = torch.randn(8, 16, 32, generator=torch.Generator().manual_seed(0))
    loss = [
        module._loss(nothing, time, lambda shape: noise) for time in (torch.zeros(8), torch.ones(8))
    ]
    assert torch.equal(heard[0]["hidden_states"], torch.zeros(8, 16, 32))
    assert torch.equal(heard[1]["hidden_states"], noise)
    assert loss[0] == loss[1] == noise.square().mean()


def test_times_are_shifted_as_the_scheduler_shifts_its_steps(module):
    scheduler = module.pipeline.scheduler
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0.1, 10).tolist())
    assert torch.allclose(shifted(torch.linspace(1, 0.1, 10)), scheduler.sigmas[:-1])


def test_only_the_transformer_and_t5_are_trained(module, latents):
    module.zero_grad()
    module._loss(latents, torch.full((8,), 0.5), torch.randn).backward()
    trained = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None}
    assert trained == {"transformer", "text_encoder_2"}


def test_training_goes_on_from_a_pipeline(module):
    shipped = TextToImageModule("shapes-flux/vae", "shapes-judges/clip", start="shapes-flux")
    pipeline = FluxPipeline.from_pretrained(locate("shapes-flux"), low_cpu_mem_usage=False)
    for part in ("transformer", "text_encoder_2"):
        ours, theirs = getattr(shipped, part).state_dict(), getattr(pipeline, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "make", [ShapesReaderModule, ShapesClipModule, AutoencoderModule], ids=lambda it: it.__name__
)
def test_a_few_steps_lower_the_loss(make, pictures):
    torch.manual_seed(0)
    module = make()
    module.log = lambda *args, **options: None
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(module.training_step(pictures, 0))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_it_reads_with_the_tokenizer_that_its_clip_was_trained_with(module):
    judge = ClipScore("shapes-judges/clip").tokenizer
    assert module.pipeline.tokenizer.get_vocab() == judge.get_vocab()


def test_tokens_have_the_same_numbers_in_every_process():
    code = "from ditprune.zoo.shapes_parts import clip_tokenizer as t; print(t().get_vocab())"
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, check=True).stdout for _ in range(2)]
    assert ast.literal_eval(runs[0].decode()) == ast.literal_eval(runs[1].decode())
