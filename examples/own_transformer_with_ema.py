"""A project with a transformer of its own inside a wrapper, and an averaged copy beside it.

python examples/own_transformer_with_ema.py runs/example
"""

import copy
import sys

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ditprune import Role
from ditprune.callbacks import GranularityCallback, PruneCallback, ReportCallback
from ditprune.families import Batch, Table
from ditprune.granularity import Row
from ditprune.saliency import Energy


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        return tokens + self.down(nn.functional.gelu(self.up(tokens)))


class OwnTransformer(nn.Module):
    """Predicts the noise in tokens [b, 16, 4]."""

    def __init__(self, width: int = 32, num_blocks: int = 3) -> None:
        super().__init__()
        self.embed, self.final = nn.Linear(4, width), nn.Linear(width, 4)
        self.time, self.label = nn.Linear(1, width), nn.Embedding(10, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(num_blocks))

    def forward(self, tokens: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        time = self.time(timestep.view(-1, 1) / 1000) + self.label(label)
        hidden = self.embed(tokens) + time.unsqueeze(1)
        for block in self.blocks:
            hidden = block(hidden)
        return self.final(hidden)


class Wrapper(nn.Module):
    """What CompVis' projects put around their network."""

    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model


class LatentDiffusion(L.LightningModule):
    """Holds the network at `model.diffusion_model`, and its average at `model_ema`."""

    def configure_model(self) -> None:
        torch.manual_seed(0)
        self.model = Wrapper(OwnTransformer())
        self.model_ema = copy.deepcopy(self.model).requires_grad_(False)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Nothing to measure: the weights are random."""


class Latents(L.LightningDataModule):
    """Random latents, and the calibration samples made of them."""

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(4))

    def calibration_dataloader(self) -> list[Batch]:
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(32, 16, 4, generator=generator)
        timesteps = torch.linspace(0, 999, 32)
        return [Batch(latents, timesteps, torch.arange(32) % 10, timesteps / 1000)]


FAMILY = Table(
    table={
        r"(?P<block>blocks\.\d+)\.up": Role.MLP_UP,
        r"(?P<block>blocks\.\d+)\.down": Role.MLP_DOWN,
    },
)


def main(folder: str) -> LatentDiffusion:
    """Prune half of the network's MLPs by Wanda; the averaged copy stays dense."""
    callbacks = [
        PruneCallback(family=FAMILY, saliency=Energy(1.0, 1.0)),
        GranularityCallback(Row(), 0.5),
        ReportCallback(),
    ]
    trainer = L.Trainer(default_root_dir=folder, callbacks=callbacks, logger=False)
    project = LatentDiffusion()
    trainer.validate(project, Latents())
    return project


if __name__ == "__main__":
    main(*sys.argv[1:])
