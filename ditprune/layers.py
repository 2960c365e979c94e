"""The layers of a model that are pruned: their weights and biases."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calibration import Weights
from ditprune.families import Family
from ditprune.masks import weight_matrix
from ditprune.repair import Repaired
from ditprune.targets import PruneTarget


def target_weights(model: nn.Module, family: Family) -> Weights:
    """Return the weights of the family's targets, which share the model's memory."""
    weights = {target: weight_matrix(model, target) for target in family.targets(model)}
    demand_finite_weights(weights)
    return weights


def demand_finite_weights(weights: Weights) -> None:
    """Raise a ValueError that names the layers with weights that are NaN or infinite."""
    bad = [target.name for target, weight in weights.items() if not weight.isfinite().all()]
    if bad:
        raise ValueError(
            f"the model has NaN or infinite weights in {', '.join(bad[:8])}; the checkpoint is "
            "damaged, or its dtype too narrow"
        )


def bias_of(model: nn.Module, target: PruneTarget) -> Tensor | None:
    """Return a layer's bias, if it has one."""
    layer: Any = model.get_submodule(target.name)
    bias: Tensor | None = layer.bias
    return bias


def install_(model: nn.Module, target: PruneTarget, repaired: Repaired) -> None:
    """Overwrite a layer's weights and bias."""
    weight_matrix(model, target).copy_(repaired.weight)
    bias = bias_of(model, target)
    if bias is not None:
        bias += repaired.bias_shift


@contextmanager
def restoring(model: nn.Module, weights: Weights) -> Iterator[None]:
    """Give the layers their weights and biases back when the block ends."""
    before = copies(model, weights)
    try:
        yield
    finally:
        put_back_(before)


@contextmanager
def all_or_nothing(model: nn.Module, weights: Weights) -> Iterator[None]:
    """Give the layers their weights and biases back if the block ends with an error."""
    before = copies(model, weights)
    try:
        yield
    except BaseException:  # whoever interrupts a notebook goes on with the model too
        put_back_(before)
        raise


def copies(model: nn.Module, weights: Weights) -> list[tuple[Tensor, Tensor]]:
    """Return the layers' weights and biases, each with a copy in the CPU's memory."""
    biases = [bias for target in weights if (bias := bias_of(model, target)) is not None]
    return [(x, x.detach().to("cpu", copy=True)) for x in (*weights.values(), *biases)]


@torch.no_grad()
def put_back_(before: list[tuple[Tensor, Tensor]]) -> None:
    """Overwrite tensors by their copies."""
    for tensor, values in before:
        tensor.copy_(values)
