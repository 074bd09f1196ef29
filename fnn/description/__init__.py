"""Networks as data: written as JSON, built again, compared."""

from fnn.description.comparison import Difference, diff
from fnn.description.reader import build
from fnn.description.writer import describe

__all__ = ["Difference", "build", "describe", "diff"]
