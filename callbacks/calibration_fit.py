"""A `trainer.fit` that trains nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import lightning as L
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy


@contextmanager
def without_training(trainer: L.Trainer) -> Iterator[None]:
    """Make the fit that is being set up stop before its first batch.

    No sanity check, no optimizers, and under DDP no wrapper with its gradient buckets: the
    weights are made equal on all ranks, as the wrapper would have done.
    """
    strategy = trainer.strategy
    limits = trainer.limit_train_batches, trainer.num_sanity_val_steps
    trainer.limit_train_batches, trainer.num_sanity_val_steps = 0, 0
    replaced: dict[str, Callable[..., None]] = {"setup_optimizers": lambda trainer: None}
    if isinstance(strategy, DDPStrategy):
        replaced["configure_ddp"] = partial(synchronize_, strategy)
    vars(strategy).update(replaced)
    try:
        yield
    finally:
        trainer.limit_train_batches, trainer.num_sanity_val_steps = limits
        for name in replaced:
            vars(strategy).pop(name, None)


def synchronize_(strategy: DDPStrategy) -> None:
    """Give every rank the first rank's weights."""
    assert strategy.model is not None
    for tensor in strategy.model.state_dict().values():
        dist.broadcast(tensor, src=0)


def demand_whole_weights(strategy: Strategy) -> None:
    """Raise a ValueError if the strategy shards the weights, which are scored layer by layer."""
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise ValueError(
            f"cannot calibrate under {type(strategy).__name__}: it may shard the weights. Prune "
            "on a single device or with strategy='ddp', save, and load the result there."
        )
