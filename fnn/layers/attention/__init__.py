"""Attention: `attention.py` is the layer, `rows.py` its mathematics, `blocks.py` how it is cut."""

from fnn.layers.attention.attention import attention
from fnn.layers.attention.distances import alibi, relative_bias

__all__ = ["alibi", "attention", "relative_bias"]
