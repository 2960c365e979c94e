"""What trained the classifier of digits."""

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from ditprune.lit.denoiser import LabelledBatch
from ditprune.zoo.digits import DigitClassifier


class ClassifierModule(L.LightningModule):
    """Trains the classifier whose features judge the digits."""

    def __init__(self, learning_rate: float = 2e-3) -> None:
        """Make an untrained classifier.

        Args:
            learning_rate: of AdamW.
        """
        super().__init__()
        self.classifier = DigitClassifier()
        self.learning_rate = learning_rate

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Float[Tensor, ""]:
        """Return the cross-entropy on images shifted by up to one pixel."""
        images, labels = batch
        padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
        top, left = torch.randint(3, (2,)).tolist()
        shifted = padded[:, :, top : top + 8, left : left + 8]
        return F.cross_entropy(self.classifier(shifted), labels, label_smoothing=0.05)

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        """Log the share of held-out digits that are read rightly."""
        images, labels = batch
        accuracy = (self.classifier(images).argmax(1) == labels).float().mean()
        self.log("val/accuracy", accuracy, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self) -> Optimizer:
        """Return AdamW."""
        return AdamW(self.parameters(), self.learning_rate, weight_decay=1e-2)
