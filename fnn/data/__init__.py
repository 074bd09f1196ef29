"""Data sets as NumPy arrays, and batches of them.

fnn.data.load -> (one line of normalization) -> batches or eval_batches -> step
what outgrows memory -> stream, bucketed -> step
"""

from fnn.data.batching import batches, eval_batches, permutation
from fnn.data.buckets import bucketed
from fnn.data.loading import load
from fnn.data.packs import packed
from fnn.data.sources import files
from fnn.data.stream import Stream, stream

__all__ = [
    "Stream", "batches", "bucketed", "eval_batches", "files", "load", "packed", "permutation",
    "stream",
]  # fmt: skip
