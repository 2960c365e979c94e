import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

from ditprune.families import Batch


@pytest.fixture
def tiny_dit() -> DiTTransformer2DModel:
    """Two blocks of the published layer names, 16 wide, with weights that do something."""
    generator = torch.Generator().manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=1,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_type="ada_norm_zero",
    )
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval()


@pytest.fixture
def scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="squaredcos_cap_v2")


@pytest.fixture
def calibration() -> Batch:
    """Twelve samples at levels that cover the schedule."""
    generator = torch.Generator().manual_seed(1)
    level = torch.arange(12) / 12
    return Batch(
        latents=torch.randn(12, 1, 8, 8, generator=generator),
        timestep=(level * 1000).long(),
        condition=torch.arange(12) % 10,
        noise_level=level,
    )


def split(batch: Batch, size: int) -> list[Batch]:
    return [Batch(*(x[i : i + size] for x in batch)) for i in range(0, len(batch.latents), size)]
