"""An existing Lightning project, as small as possible, into which the callbacks plug."""

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from ditprune.callbacks import EvaluationCallback, GranularityCallback, PruneCallback
from ditprune.datamodules import CalibrationDataset, collate
from ditprune.granularity import Layer
from ditprune.metrics import FeatureExtractor, Features, FrechetDistance


class Project(L.LightningModule):
    def __init__(self, transformer) -> None:
        super().__init__()
        self.transformer = transformer
        self.steps: list[str] = []

    def training_step(self, batch, batch_idx):
        self.steps.append("train")
        return (
            self.transformer(batch[0], timestep=torch.zeros(len(batch[0])), class_labels=batch[1])
            .sample.square()
            .mean()
        )

    def validation_step(self, batch, batch_idx):
        self.steps.append("validate")

    def configure_optimizers(self):
        self.steps.append("optimizers")
        return torch.optim.Adam(self.parameters())

    def sample(self, condition, generators):
        noise = torch.stack([torch.randn(1, 8, 8, generator=g) for g in generators])
        zeros = torch.zeros(len(noise))
        return self.transformer(noise, timestep=zeros, class_labels=condition).sample.tanh()


class Data(L.LightningDataModule):
    def __init__(self, scheduler, batch_size: int = 4, num_calibration_samples: int = 8) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.batch_size = batch_size
        self.num_calibration_samples = num_calibration_samples
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(20, 1, 8, 8, generator=generator) * 2 - 1
        self.labels = torch.arange(20) % 10

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.images, self.labels), 5)

    val_dataloader = train_dataloader

    def calibration_dataloader(self):
        dataset = CalibrationDataset(
            self.images, self.labels, self.scheduler, self.num_calibration_samples
        )
        return DataLoader(dataset, self.batch_size, collate_fn=collate)

    def evaluation_conditions(self, num_samples):
        return torch.arange(num_samples) % 10

    def reference_dataloader(self):
        return DataLoader(((self.images + 1) * 127).to(torch.uint8), 7)


class Rows(FeatureExtractor):
    """The mean of every pixel row: features that need no network."""

    name = "rows"

    def extract(self, images):
        rows = images.float().mean(3).flatten(1)
        return Features(rows, rows)

    def to(self, device):
        return self


class SpatialRows(Rows):
    """The same, as if they told of places too."""

    name = "spatial rows"

    def extract(self, images):
        return super().extract(images)._replace(spatial=images.float().mean(3).flatten(1))


def pruning(sparsity: float = 0.5, **options):
    return [PruneCallback(**options), GranularityCallback(Layer(), sparsity)]


def evaluation(**options) -> EvaluationCallback:
    settings = {"metrics": [FrechetDistance()], "num_samples": 6, "chunk_size": 4, **options}
    return EvaluationCallback(**{"extractor": Rows(), **settings})


def trainer(root, callbacks, **options) -> L.Trainer:
    return L.Trainer(
        default_root_dir=root,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "max_epochs": 1,
            **options,
        },
    )
