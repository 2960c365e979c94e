"""Saves what a training run made, in the layout that loads without this package."""

from pathlib import Path

import lightning as L
from diffusers import DiffusionPipeline
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save_model

from ditprune.atomic import writing, writing_folder


class SavePretrained(L.Callback):
    """Writes the trained networks when a fit ends: as folders, or one safetensors file."""

    def __init__(self, folder: str, attributes: list[str]) -> None:
        """Choose what to save where.

        Args:
            folder: to write to.
            attributes: of the LightningModule. A pipeline of diffusers becomes the folder itself;
                what else knows how to save itself, as models and schedulers do, becomes a
                folder in it; other networks `<attribute>.safetensors`.
        """
        self.folder = Path(folder)
        self.attributes = attributes

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the networks, after any averaged weights were copied back."""
        for attribute in self.attributes:
            part = getattr(pl_module, attribute)
            if hasattr(part, "save_pretrained"):
                is_whole = isinstance(part, DiffusionPipeline)
                with writing_folder(self.folder if is_whole else self.folder / attribute) as draft:
                    part.save_pretrained(draft)
            else:
                with writing(self.folder / f"{attribute}.safetensors") as draft:
                    save_model(part, str(draft))
