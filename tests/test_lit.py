import pytest
import torch
from diffusers import AutoencoderKL

from ditprune.evaluation import Sampler
from ditprune.lit import DenoiserModule
from ditprune.sampling import sample_generator


@pytest.fixture
def module(tiny_dit, scheduler) -> DenoiserModule:
    return DenoiserModule(tiny_dit, scheduler, num_inference_steps=3, guidance_scale=2.0)


def draw(module, ids):
    return module.sample(torch.tensor(ids) % 10, [sample_generator(0, i) for i in ids])


def test_it_is_a_sampler_of_images_in_range(module):
    assert isinstance(module, Sampler)
    images = draw(module, [0, 1])
    assert images.shape == (2, 1, 8, 8)
    assert images.abs().max() <= 1


def test_a_latent_model_decodes_with_its_vae(tiny_dit, scheduler, monkeypatch):
    vae = AutoencoderKL(3, 3, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, (8, 8), 1,
                        latent_channels=1, norm_num_groups=4, scaling_factor=0.5)  # fmt: skip
    module = DenoiserModule(tiny_dit, scheduler, vae.eval(), num_inference_steps=2)
    images = draw(module, [3])
    latents = []
    monkeypatch.setattr(module, "_decode", lambda x: latents.append(x) or x)
    draw(module, [3])
    assert images.shape == (1, 3, 16, 16)
    with torch.no_grad():
        expected = vae.decode(latents[0] / 0.5).sample.clamp(-1, 1)
    assert torch.allclose(images, expected, atol=1e-5)


def test_the_null_class_is_trained_as_a_whole(module):
    """Each block of diffusers' DiT would drop the label on its own."""
    module.train()
    module.label_dropout = 0.5
    torch.manual_seed(0)
    labels = module._drop(torch.arange(1000) % 10)
    assert 0.4 < (labels == 10).float().mean() < 0.6
    assert not any(part.training for part in module.transformer.modules())
    kept = labels != 10
    assert torch.equal(labels[kept], (torch.arange(1000) % 10)[kept])


def test_the_loss_is_the_error_of_the_predicted_noise(module, monkeypatch):
    images, labels = torch.zeros(3, 1, 8, 8), torch.arange(3)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(5))

    def predict(noised, timestep, class_labels):
        alpha = module.scheduler.alphas_cumprod[timestep].view(-1, 1, 1, 1)
        assert torch.allclose(noised, (1 - alpha).sqrt() * noise, atol=1e-6)
        return type("Output", (), {"sample": noise + 2})()

    monkeypatch.setattr(module.transformer, "forward", predict)
    loss = module._loss(images, labels, torch.Generator().manual_seed(5))
    assert loss.item() == pytest.approx(4)
