"""A project whose module holds a pipeline of diffusers, which is no module, as an attribute.

python examples/pipeline_attribute.py runs/example
"""

import sys

import lightning as L
import torch
from diffusers import DiTPipeline
from torch import Tensor
from torch.utils.data import DataLoader

from ditprune.callbacks import GranularityCallback, PruneCallback, ReportCallback
from ditprune.datamodules import DigitsDataModule
from ditprune.granularity import Layer
from ditprune.repair import LeastSquares
from ditprune.saliency import Energy
from ditprune.zoo import load_pretrained


class PipelineProject(L.LightningModule):
    """Draws with the pipeline's parts; the transformer is found inside of it."""

    def __init__(self) -> None:
        super().__init__()
        transformer, scheduler, _ = load_pretrained("digits-dit")
        self.pipeline = DiTPipeline(transformer, None, scheduler)  # these digits need no decoder

    def predict_step(self, labels: Tensor, batch_idx: int) -> Tensor:
        images = torch.randn(len(labels), 1, 8, 8)
        self.pipeline.scheduler.set_timesteps(25)
        for timestep in self.pipeline.scheduler.timesteps:
            steps = timestep.expand(len(labels))
            predicted = self.pipeline.transformer(images, timestep=steps, class_labels=labels)
            stepped = self.pipeline.scheduler.step(predicted.sample[:, :1], timestep, images)
            images = stepped.prev_sample
        return images

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Nothing to measure."""


def main(folder: str) -> list[Tensor]:
    """Prune 70 %, repair what is left, and draw a digit of each kind."""
    callbacks = [
        PruneCallback(saliency=Energy(1.0, 1.0)),
        GranularityCallback(Layer(), 0.7, repair=LeastSquares()),
        ReportCallback(),
    ]
    trainer = L.Trainer(default_root_dir=folder, callbacks=callbacks, logger=False)
    project = PipelineProject()
    trainer.validate(project, DigitsDataModule(num_calibration_samples=32))
    return trainer.predict(project, DataLoader(torch.arange(10), 10))


if __name__ == "__main__":
    main(*sys.argv[1:])
