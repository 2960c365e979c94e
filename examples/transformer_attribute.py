"""A project whose module holds a transformer of diffusers: two callbacks, one method of the data.

python examples/transformer_attribute.py runs/example
"""

import sys

import lightning as L
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ditprune.callbacks import GranularityCallback, PruneCallback, ReportCallback
from ditprune.datamodules import CalibrationDataset, collate
from ditprune.families import Batch
from ditprune.granularity import ClusteringAware
from ditprune.zoo import load_pretrained
from ditprune.zoo.digits import load_split


class Digits(L.LightningDataModule):
    """The project's data, with the one method that calibration asks for."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.utils.data.TensorDataset(*load_split().train), 128, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.utils.data.TensorDataset(*load_split().held_out), 128)

    def calibration_dataloader(self) -> DataLoader[Batch]:
        images, labels = load_split().train
        scheduler = self.trainer.lightning_module.noise_schedule
        dataset = CalibrationDataset(images, labels, scheduler, num_samples=32)
        return DataLoader(dataset, 16, collate_fn=collate)


class Denoiser(L.LightningModule):
    """The project's module, which knows nothing of pruning."""

    def __init__(self) -> None:
        super().__init__()
        self.dit: DiTTransformer2DModel
        self.dit, self.noise_schedule, _ = load_pretrained("digits-dit")

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        noise = torch.randn_like(images)
        timestep = torch.randint(1000, labels.shape, device=labels.device)
        noised = self.noise_schedule.add_noise(images, noise, timestep)
        predicted = self.dit(noised, timestep=timestep, class_labels=labels).sample
        return nn.functional.mse_loss(predicted[:, :1], noise)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(*batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(*batch), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-4)


def main(folder: str) -> L.Trainer:
    """Prune half of the transformer, and validate what is left."""
    callbacks = [PruneCallback(), GranularityCallback(ClusteringAware(), 0.5), ReportCallback()]
    trainer = L.Trainer(default_root_dir=folder, callbacks=callbacks, logger=False)
    trainer.validate(Denoiser(), Digits())
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
