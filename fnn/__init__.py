"""fnn: a neural network is a pure function over a parameter tree, y = net(params, x)."""

from fnn import data, initializers, losses, metrics, optim, testing, train
from fnn.combinators import serial
from fnn.errors import FnnError
from fnn.initializing import Derived, Param
from fnn.layer import Layer, compose, leaf
from fnn.layers.conv import conv
from fnn.layers.dense import dense
from fnn.layers.dropout import dropout
from fnn.layers.norm import batch_norm
from fnn.layers.pool import avg_pool, max_pool
from fnn.layers.reshape import flatten

__version__ = "0.1.0"

__all__ = [
    "Derived",
    "FnnError",
    "Layer",
    "Param",
    "avg_pool",
    "batch_norm",
    "compose",
    "conv",
    "data",
    "dense",
    "dropout",
    "flatten",
    "initializers",
    "leaf",
    "losses",
    "max_pool",
    "metrics",
    "optim",
    "serial",
    "testing",
    "train",
]
