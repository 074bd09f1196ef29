"""Data sets as NumPy arrays, batches of them, and augmentations.

fnn.data.load -> (one line of normalization) -> batches or eval_batches -> step
"""

from fnn.data import augment
from fnn.data.batching import batches, eval_batches, permutation
from fnn.data.loading import load

__all__ = ["augment", "batches", "eval_batches", "load", "permutation"]
