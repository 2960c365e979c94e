"""Where a module keeps what it makes for its run."""

from pathlib import Path

import lightning as L


def run_folder(module: L.LightningModule) -> Path:
    """Return the folder of the run: the logger's, else the trainer's root. All ranks must call."""
    return Path(module.trainer.log_dir or module.trainer.default_root_dir)
