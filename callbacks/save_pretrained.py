"""Saves what a training run made, in the layout that loads without this package."""

from pathlib import Path

import lightning as L
from diffusers import ModelMixin, SchedulerMixin
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save_model

from ditprune.atomic import writing, writing_folder


class SavePretrained(L.Callback):
    """Writes the trained networks when a fit ends: diffusers' folders, or one safetensors file."""

    def __init__(self, folder: str, attributes: list[str]) -> None:
        """Choose what to save where.

        Args:
            folder: to write to.
            attributes: of the LightningModule: diffusers' models and schedulers become a
                folder each, other networks `<attribute>.safetensors`.
        """
        self.folder = Path(folder)
        self.attributes = attributes

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the networks, after any averaged weights were copied back."""
        for attribute in self.attributes:
            part = getattr(pl_module, attribute)
            if isinstance(part, ModelMixin | SchedulerMixin):
                with writing_folder(self.folder / attribute) as draft:
                    part.save_pretrained(draft)
            else:
                with writing(self.folder / f"{attribute}.safetensors") as draft:
                    save_model(part, str(draft))
