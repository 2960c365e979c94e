"""The pruned model, in the layout that diffusers loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from safetensors.torch import save_model
from torch import nn

from ditprune.atomic import writing_folder
from ditprune.masks import MaskSet


def save_pruned(
    model: nn.Module, masks: MaskSet, config: Mapping[str, Any], folder: Path, name: str
) -> None:
    """Write the masks, and the model, dense with zeros, with its pruning configuration.

    `<folder>/<name>` is what `from_pretrained` of a diffusers model reads; of any other module
    it holds `model.safetensors`.
    """
    masks.save(folder / "masks.safetensors")
    with writing_folder(folder / name) as draft:
        if isinstance(model, ModelMixin):
            model.save_pretrained(draft)
        else:
            save_model(model, str(draft / "model.safetensors"))
        (draft / "pruning_config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
