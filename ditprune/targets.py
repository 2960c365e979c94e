"""The address of a prunable layer: pure data, no tensors."""

import enum
from dataclasses import dataclass


class Role(str, enum.Enum):
    """What a layer does inside its transformer block.

    A layer of the text stream has the role of its twin in the image stream, and one of a
    cross-attention that of its twin in self-attention: the name tells them apart. A gate is
    MLP_UP too, for its rows belong to the same units of the MLP.
    """

    ATTN_Q = "attn_q"
    ATTN_K = "attn_k"
    ATTN_V = "attn_v"
    ATTN_OUT = "attn_out"
    MLP_UP = "mlp_up"
    MLP_DOWN = "mlp_down"
    MODULATION = "modulation"
    FUSED_IN = "fused_in"
    """q, k and v in one matrix, and sometimes the rows of MLP_UP below them."""
    FUSED_OUT = "fused_out"
    """ATTN_OUT and MLP_DOWN in one matrix, side by side: their sum."""
    PROJECTION = "projection"
    """What leads into, out of or past attention and MLP: `proj_in`, shortcuts, skips."""


@dataclass(frozen=True)
class PruneTarget:
    """One linear layer, or 1x1 convolution, that may lose weights."""

    name: str
    """The module's dotted name inside the model."""
    role: Role
    block: int
    """Position of the transformer block it belongs to; of several lists of blocks, the numbers
    of one go on where those of the list before it end."""
    num_heads: int
    """Heads of its attention, or of the nearest one in its block."""
    block_name: str = ""
    """The dotted name of its transformer block; empty where that is the whole model."""

    @property
    def place(self) -> str:
        """Its name inside the block, which it shares with layers of other blocks."""
        return self.name.removeprefix(self.block_name).lstrip(".")
