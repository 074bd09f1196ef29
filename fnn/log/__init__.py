"""Logs of training runs: callbacks of `fit` that write them, and what reads them.

`python -m fnn.log run.jsonl` shows a run while it is written.
"""

from fnn.log.files import csv, jsonl
from fnn.log.read import read
from fnn.log.tensorboard import tensorboard

__all__ = ["csv", "jsonl", "read", "tensorboard"]
