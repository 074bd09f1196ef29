"""Recurrent cells under their public name: `fnn.layers.recurrent.cells`."""

from fnn.layers.recurrent.cells import *  # noqa: F403
from fnn.layers.recurrent.cells import __all__ as __all__
