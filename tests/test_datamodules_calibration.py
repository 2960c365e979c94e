import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.utils.data import DataLoader

from ditprune.datamodules import CalibrationDataset, DigitsDataModule, collate
from ditprune.families import Batch
from ditprune.sampling import sample_generator


@pytest.fixture
def dataset(scheduler) -> CalibrationDataset:
    images = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 1, 8, 8) / 10 - 1
    return CalibrationDataset(images, torch.arange(20) % 10, scheduler, num_samples=16, seed=3)


def joined(loader) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*loader, strict=True)))


def test_timesteps_cover_every_part_of_the_schedule_once(dataset):
    batch = joined(DataLoader(dataset, 5, collate_fn=collate))
    assert (batch.timestep * 16 // 1000).tolist() == list(range(16))
    assert torch.allclose(batch.noise_level, batch.timestep / 1000)


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (7, 0), (16, 2)])
def test_neither_batch_size_nor_workers_change_a_bit(dataset, size, workers):
    loader = DataLoader(dataset, size, num_workers=workers, collate_fn=collate)
    reference = joined(DataLoader(dataset, 4, collate_fn=collate))
    assert all(torch.equal(a, b) for a, b in zip(joined(loader), reference, strict=True))


def test_latents_are_the_images_noised_as_the_scheduler_does(dataset, scheduler):
    sample = dataset[15]
    alpha = scheduler.alphas_cumprod[sample.timestep]
    image = dataset.images[dataset.order[15]]
    noise = (sample.latents[0] - alpha.sqrt() * image) / (1 - alpha).sqrt()
    assert abs(noise.mean()) < 0.5
    assert 0.7 < noise.std() < 1.3


def test_images_are_drawn_without_replacement_and_keep_their_condition(dataset):
    assert len(set(dataset.order[:16].tolist())) == 16
    for index in (0, 9):
        assert dataset[index].condition.item() == dataset.order[index] % 10


def test_another_seed_gives_other_samples(dataset, scheduler):
    other = CalibrationDataset(dataset.images, dataset.conditions, scheduler, 16, seed=4)
    assert not torch.equal(other.order, dataset.order)
    assert not torch.equal(other[0].latents, dataset[0].latents)


def test_conditions_of_another_number_are_refused(dataset, scheduler):
    with pytest.raises(ValueError, match="20 images have 3 conditions"):
        CalibrationDataset(dataset.images, torch.arange(3), scheduler)


def test_digits_are_calibrated_with_training_images_only():
    module = DigitsDataModule(num_calibration_samples=8, calibration_batch_size=3)
    batches = list(module.calibration_dataloader())
    assert [len(batch.latents) for batch in batches] == [3, 3, 2]
    assert {len(images) for images, _ in module.val_dataloader()} == {128, 104}
    assert sum(len(images) for images in module.reference_dataloader()) == 1437


def test_digits_are_asked_for_equally_often():
    conditions = DigitsDataModule().evaluation_conditions(20)
    assert conditions.bincount().tolist() == [2] * 10


def test_prompts_are_named_tensors_that_stay_with_their_image(dataset, scheduler):
    text = {"embeddings": torch.arange(20.0).view(20, 1, 1).expand(20, 3, 2)}
    prompts = CalibrationDataset(dataset.images, text, scheduler, 16, seed=3)
    batch = next(iter(DataLoader(prompts, 16, collate_fn=collate)))
    assert batch.condition["embeddings"].shape == (16, 3, 2)
    assert batch.condition["embeddings"][:, 0, 0].tolist() == dataset.order[:16].tolist()
    assert torch.equal(batch.latents[4], dataset[4].latents[0])
    with pytest.raises(ValueError, match="20 images have 3 conditions"):
        CalibrationDataset(dataset.images, {"embeddings": torch.ones(3, 2)}, scheduler)


def test_a_seed_draws_other_digits_and_the_datamodules_own_seed_the_same():
    module = DigitsDataModule(num_calibration_samples=8, seed=3)
    own, same, other, zero = (
        joined(module.calibration_dataloader(*seed)) for seed in ((), (3,), (4,), (0,))
    )
    assert all(torch.equal(a, b) for a, b in zip(own, same, strict=True))
    assert not torch.equal(own.latents, other.latents)
    # A seed of 0 is a seed, and the one that a datamodule of seed 0 has.
    assert not torch.equal(own.latents, zero.latents)
    plain = joined(DigitsDataModule(num_calibration_samples=8).calibration_dataloader())
    assert torch.equal(plain.latents, zero.latents)


@pytest.mark.parametrize("num_inference_steps", [None, 5])
def test_latents_of_flow_matching_are_mixed_as_its_scheduler_does(num_inference_steps):
    """By hand: sigma * noise + (1 - sigma) * image, at timesteps that the scheduler has."""
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    if num_inference_steps:
        flow.set_timesteps(num_inference_steps)
        flow.set_begin_index(0)  # as pipelines do
    tokens = torch.randn(20, 6, 4)
    text = {"text": torch.arange(20.0).view(20, 1)}
    samples = CalibrationDataset(tokens, text, flow, num_samples=10, seed=3)
    for index in range(10):
        sample, generator = samples[index], sample_generator(3, index, "calibration")
        torch.rand(1, generator=generator)
        noise, sigma = torch.randn(1, 6, 4, generator=generator), sample.timestep / 1000
        image = tokens[samples.order[[index]]]
        assert torch.allclose(sample.latents, sigma * noise + (1 - sigma) * image, atol=1e-5)
        assert sample.timestep in flow.timesteps
        assert sample.condition["text"].item() == samples.order[index]
        assert torch.equal(sample.noise_level, sigma)
    steps = [(flow.timesteps == samples[i].timestep).nonzero().item() for i in range(10)]
    parts = [step * 10 // len(flow.timesteps) for step in steps]
    assert (
        parts == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
        if not num_inference_steps
        else [8, 8, 6, 6, 4, 4, 2, 2, 0, 0]
    )
