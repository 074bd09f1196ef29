"""Data sets as NumPy arrays, and batches of them.

data -> fnn.data.load -> (your one line of normalization) -> batches / eval_batches -> step
"""

from fnn.data.batching import batches, eval_batches, permutation
from fnn.data.loading import load

__all__ = ["batches", "eval_batches", "load", "permutation"]
