"""What must happen before or after the model is pruned does, whatever the order of callbacks."""

import abc

import lightning as L

from ditprune.calibration import Weights


class BeforePruning(L.Callback, abc.ABC):
    """A callback with something to do while the model is still dense."""

    @abc.abstractmethod
    def before_pruning(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do it; calls after the first do nothing."""


class AfterPruning(L.Callback, abc.ABC):
    """A callback with something to do as soon as the model is pruned."""

    @abc.abstractmethod
    def after_pruning(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do it."""


class BeforeCalibration(L.Callback, abc.ABC):
    """A callback that knows what would be impossible, before the long work starts."""

    @property
    @abc.abstractmethod
    def needs_gram(self) -> bool:
        """Whether the Gram matrices of all layers' inputs are needed at once."""

    @abc.abstractmethod
    def before_calibration(self, weights: Weights) -> None:
        """Raise a ValueError if the target layers cannot give what is asked of them."""
