"""Attention: `attention.py` is the layer, `products.py` its mathematics."""

from fnn.layers.attention.attention import attention

__all__ = ["attention"]
