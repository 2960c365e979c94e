r"""Parts of the tables: what diffusers calls the layers of its transformer blocks.

`in_blocks("transformer_blocks", attention("attn1"))` lists
`(?P<block>transformer_blocks\.\d+)\.attn1\.to_q` as ATTN_Q, and so on.
"""

from collections.abc import Mapping

from ditprune.targets import Role


def in_blocks(blocks: str, *parts: Mapping[str, Role]) -> dict[str, Role]:
    """Return the table of layers in every block of a list, by patterns of their names in it."""
    return {
        rf"(?P<block>{blocks}\.\d+)\.{name}": role for part in parts for name, role in part.items()
    }


def attention(name: str) -> dict[str, Role]:
    """Return the four layers of an attention."""
    return {**query_key_value(name), rf"{name}\.to_out\.0": Role.ATTN_OUT}


def query_key_value(name: str) -> dict[str, Role]:
    """Return the three layers that an attention begins with."""
    return {
        rf"{name}\.to_q": Role.ATTN_Q,
        rf"{name}\.to_k": Role.ATTN_K,
        rf"{name}\.to_v": Role.ATTN_V,
    }


def added_attention(name: str) -> dict[str, Role]:
    """Return the four layers for the text, in an attention to image and text together."""
    return {
        rf"{name}\.add_q_proj": Role.ATTN_Q,
        rf"{name}\.add_k_proj": Role.ATTN_K,
        rf"{name}\.add_v_proj": Role.ATTN_V,
        rf"{name}\.to_add_out": Role.ATTN_OUT,
    }


def feed_forward(name: str) -> dict[str, Role]:
    """Return the two layers of an MLP; of a gated one the first holds the gate too."""
    return {rf"{name}\.net\.0\.proj": Role.MLP_UP, rf"{name}\.net\.2": Role.MLP_DOWN}


def modulation(name: str) -> dict[str, Role]:
    """Return the layer of an adaptive norm."""
    return {name: Role.MODULATION}
