"""The address of a prunable layer: pure data, no tensors."""

import enum
import re
from dataclasses import dataclass


class Role(str, enum.Enum):
    """What a layer does inside its transformer block."""

    ATTN_Q = "attn_q"
    ATTN_K = "attn_k"
    ATTN_V = "attn_v"
    ATTN_OUT = "attn_out"
    MLP_UP = "mlp_up"
    MLP_DOWN = "mlp_down"
    MODULATION = "modulation"


@dataclass(frozen=True)
class PruneTarget:
    """One linear layer, or 1x1 convolution, that may lose weights."""

    name: str
    """The module's dotted name inside the model."""
    role: Role
    block: int
    """Index of the transformer block it belongs to."""
    num_heads: int
    """Attention heads of its block."""

    @property
    def block_name(self) -> str:
        """The dotted name of its transformer block."""
        match = re.match(rf"(.*?\.)??{self.block}(?=\.|$)", self.name)
        return match[0] if match else self.name
