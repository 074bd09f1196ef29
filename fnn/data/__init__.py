"""Data sets as NumPy arrays, and batches of them.

fnn.data.load -> (one line of normalization) -> batches or eval_batches -> step
"""

from fnn.data.batching import batches, eval_batches, permutation
from fnn.data.loading import load

__all__ = ["batches", "eval_batches", "load", "permutation"]
