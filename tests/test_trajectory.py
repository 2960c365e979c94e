import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from ditprune.trajectory import single_step


@pytest.fixture
def prepared() -> FlowMatchEulerDiscreteScheduler:
    """As a pipeline leaves it: shifted by what no configuration tells."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(8, mu=0.9)
    scheduler.set_begin_index(0)
    return scheduler


def test_as_many_steps_as_a_pipeline_prepared_are_its_own(prepared):
    plain = single_step(prepared, 8)
    assert plain is not prepared
    assert torch.allclose(plain.sigmas, prepared.sigmas)
    assert torch.allclose(plain.timesteps, prepared.timesteps, atol=1e-3)


def test_fewer_steps_follow_the_same_path_from_noise_to_the_image(prepared):
    plain = single_step(prepared, 4)
    assert torch.allclose(plain.sigmas, prepared.sigmas[::2])
    assert torch.allclose(plain.timesteps, prepared.timesteps[::2], atol=1e-3)


def test_without_preparation_the_configuration_tells():
    plain = single_step(FlowMatchEulerDiscreteScheduler(shift=3.0), 5)
    expected = FlowMatchEulerDiscreteScheduler(shift=3.0)
    expected.set_timesteps(5)
    assert torch.equal(plain.sigmas, expected.sigmas)
    assert isinstance(single_step(DDPMScheduler(), 5), DDIMScheduler)
