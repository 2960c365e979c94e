"""A model of your own, by a table of its layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn

from ditprune.families.base import Batch, Family
from ditprune.targets import Role


def call_positionally(model: nn.Module, batch: Batch) -> Tensor:
    """The commonest signature: `model(latents, timestep, condition)`."""
    return model(batch.latents, batch.timestep, batch.condition)


@dataclass(frozen=True)
class Table(Family):
    """Any module whose prunable layers are listed, pattern by pattern, with their roles."""

    table: Mapping[str, Role] = field(default_factory=dict)
    r"""Whole module names, `(?P<block>blocks\.\d+)\.attn\.proj` for instance, and their roles."""
    heads: int = 1
    """Attention heads of a block."""
    call: Callable[[nn.Module, Batch], Tensor] = call_positionally
    """How to call the model once."""

    def layers(self, model: nn.Module) -> Mapping[str, Role]:
        """Return the table given."""
        return self.table

    def num_heads(self, model: nn.Module, layer: str) -> int:
        """Return the number given."""
        return self.heads

    def predict(self, model: nn.Module, batch: Batch) -> Float[Tensor, "1 b ..."]:
        """Call the model once; there is one branch."""
        return self.call(model, batch).unsqueeze(0)
