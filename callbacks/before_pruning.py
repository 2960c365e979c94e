"""What needs the dense model happens before it is pruned, whatever the order of callbacks."""

import abc

import lightning as L


class BeforePruning(L.Callback, abc.ABC):
    """A callback with something to do while the model is still dense."""

    @abc.abstractmethod
    def before_pruning(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do it; calls after the first do nothing."""
