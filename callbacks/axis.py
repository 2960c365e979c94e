"""Where on a logger's axis a pruned model's numbers belong."""

import lightning as L

from ditprune.callbacks.granularity import GranularityCallback
from ditprune.callbacks.lookup import demand_callback
from ditprune.tensorboard import percent


def step_of(trainer: L.Trainer) -> int:
    """Return the training step, or before any training the targets' sparsity in percent.

    Lightning would put every validation without training at 0, and a sweep over sparsities onto
    one point.
    """
    plan = demand_callback(trainer, GranularityCallback).plan
    assert plan is not None
    return trainer.global_step or percent(plan.target_sparsity)
