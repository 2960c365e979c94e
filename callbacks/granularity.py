"""Turns scores into masks, applies them, and sees that they hold."""

from typing import Any

import lightning as L
import torch

from ditprune.callbacks.before_pruning import BeforePruning
from ditprune.callbacks.lookup import callbacks_of, demand_callback
from ditprune.callbacks.prune import PruneCallback
from ditprune.distributed import on_first_rank
from ditprune.granularity import Granularity
from ditprune.masks import MaskSet
from ditprune.plan import Plan, decide


class GranularityCallback(L.Callback):
    """Chooses who competes with whom, keeps the winners, and zeroes the others."""

    masks: MaskSet | None = None
    """Which weights stay, once decided."""
    plan: Plan | None = None
    """What every layer gave, once decided."""

    def __init__(self, granularity: Granularity) -> None:
        """Choose the granularity, which carries the sparsity."""
        self.granularity = granularity

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there will be scores."""
        demand_callback(trainer, PruneCallback)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prune."""
        self._finalise(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prune, if that was not done yet."""
        self._finalise(trainer, pl_module)

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """See that no other callback brought pruned weights back at the start of validation."""
        if batch_idx == 0 and dataloader_idx == 0:
            self.demand_pruned(trainer, pl_module)

    def demand_pruned(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise a RuntimeError if weights that went are there again."""
        assert self.masks is not None
        model = demand_callback(trainer, PruneCallback).transformer(pl_module)
        back = self.masks.violations(model)
        if back:
            raise RuntimeError(
                f"{len(back)} pruned layers hold pruned weights again, {back[0].name} for one: "
                "what is validated is not the pruned model. A callback that swaps weights when "
                "validation starts (EMA, weight averaging) does this: copy the averaged weights "
                "into the module, prune, and validate without that callback."
            )

    def _finalise(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.masks is not None:
            return
        for callback in callbacks_of(trainer):
            if isinstance(callback, BeforePruning):
                callback.before_pruning(trainer, pl_module)
        pruner = demand_callback(trainer, PruneCallback)
        assert pruner.scores is not None
        # Validation runs in inference mode, whose tensors could never be fine-tuned.
        with torch.inference_mode(False):
            model = pruner.transformer(pl_module)
            masks, self.plan = decide(model, pruner.scores, self.granularity)
            demand_agreement(masks)
            masks.apply_(model)
        self.masks = masks


def demand_agreement(masks: MaskSet) -> None:
    """Raise a RuntimeError if this rank decided otherwise than the first."""
    mine = masks.hash()
    first = on_first_rank(masks.hash)
    if mine != first:
        raise RuntimeError(
            f"this rank's masks ({mine[:12]}) differ from the first rank's ({first[:12]}): the "
            "ranks hold other weights or saw other calibration samples"
        )
