"""Recurrent cells, `(carry, x) -> (carry, y)`, for `fnn.rnn`, `fnn.bidirectional` and scans.

A cell is a layer whose apply is one step of a scan; `cell.carry(params, x)` is its first carry.
"""

from fnn.layers.recurrent.cells.combinators import as_cell, serial, variational_dropout, zoneout
from fnn.layers.recurrent.cells.conv_lstm import conv_lstm
from fnn.layers.recurrent.cells.gru import gru, mgu
from fnn.layers.recurrent.cells.lstm import lstm
from fnn.layers.recurrent.cells.simple import simple_rnn

__all__ = [
    "as_cell", "conv_lstm", "gru", "lstm", "mgu", "serial", "simple_rnn", "variational_dropout",
    "zoneout",
]  # fmt: skip
