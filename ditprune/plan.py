"""Which layer loses how much, before and after it is decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Column, Table
from torch import nn

from ditprune.budget import Budget
from ditprune.calibration import Weights
from ditprune.granularity import Granularity, Pools
from ditprune.granularity.base import shape_of
from ditprune.granularity.clustering_aware import row_variation
from ditprune.pipeline import LayerErrors, Outcome
from ditprune.saliency import Scores
from ditprune.targets import PruneTarget


@dataclass(frozen=True)
class LayerPlan:
    """What one layer gives."""

    target: PruneTarget
    shape: tuple[int, int]
    granularity: str
    num_pruned: int
    row_variation: float | None = None
    """Squared coefficient of variation of the rows' mean scores; None before calibration."""
    errors: LayerErrors | None = None
    """What the layer's outputs lost; None where its Gram matrix was not needed."""

    @property
    def num_weights(self) -> int:
        """Weights of the layer, kept or not."""
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        """The fraction that goes."""
        return self.num_pruned / self.num_weights


@dataclass(frozen=True)
class Plan:
    """What every layer gives, and what that is of the whole."""

    layers: tuple[LayerPlan, ...]
    num_model_weights: int
    """All parameters of the model, targets or not."""

    @property
    def num_target_weights(self) -> int:
        """Weights of all targets, kept or not."""
        return sum(layer.num_weights for layer in self.layers)

    @property
    def num_pruned(self) -> int:
        """Weights that go."""
        return sum(layer.num_pruned for layer in self.layers)

    @property
    def target_sparsity(self) -> float:
        """The fraction of the targets' weights that goes."""
        return self.num_pruned / self.num_target_weights

    @property
    def model_sparsity(self) -> float:
        """The fraction of all parameters that goes."""
        return self.num_pruned / self.num_model_weights

    def target_set(self) -> str:
        """Describe the targets in a line: how many layers, of which roles."""
        roles = dict.fromkeys(layer.target.role.value for layer in self.layers)
        return f"{len(self.layers)} layers ({', '.join(roles)})"

    def totals(self) -> str:
        """Describe both sparsities in a line."""
        return (
            f"targets: {self.num_pruned:,} of {self.num_target_weights:,} weights go "
            f"({self.target_sparsity:.2%}); whole model: {self.model_sparsity:.2%} of "
            f"{self.num_model_weights:,}"
        )


def plan(
    model: nn.Module, weights: Weights, granularity: Granularity, sparsity: float, budget: Budget
) -> Plan:
    """Tell what pruning will do, without calibration: budgets that measure are shown as uniform."""
    num_pruned = budget.expected({t: weight.numel() for t, weight in weights.items()}, sparsity)
    layers = (
        LayerPlan(
            target=target,
            shape=shape_of(weight),
            granularity=granularity.label(target),
            num_pruned=granularity.attainable(target, shape_of(weight), num_pruned[target]),
        )
        for target, weight in weights.items()
    )
    return Plan(tuple(layers), count_parameters(model))


def row_variations(scores: Scores) -> dict[PruneTarget, float]:
    """Return how much the rows of every layer differ, by their scores."""
    return {target: row_variation(score) for target, score in scores.items()}


def describe(
    model: nn.Module,
    pools: Mapping[PruneTarget, Pools],
    row_variations: Mapping[PruneTarget, float],
    outcome: Outcome,
) -> Plan:
    """Tell what pruning did."""
    layers = (
        LayerPlan(
            target=target,
            shape=shape_of(mask),
            granularity=pools[target].name,
            num_pruned=mask.numel() - int(mask.sum()),
            row_variation=row_variations.get(target),
            errors=outcome.errors.get(target),
        )
        for target, mask in outcome.masks.masks.items()
    )
    return Plan(tuple(layers), count_parameters(model))


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def layer_table(layers: Sequence[LayerPlan]) -> Table:
    """Return a table to print: a line a layer."""
    names = ("layer", "role", "shape", "granularity", "sparsity")
    columns = [Column(name, overflow="fold") for name in names]
    table = Table(*columns, box=None, padding=(0, 1, 0, 0))  # narrow enough for 80 characters
    for layer in layers:
        shape = f"{layer.shape[0]} x {layer.shape[1]}"
        role = layer.target.role.value
        table.add_row(layer.target.name, role, shape, layer.granularity, f"{layer.sparsity:.2%}")
    return table
