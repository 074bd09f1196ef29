"""Checks of the numbers that define schedules."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.core
import numpy as np

from fnn.core import checks, errors
from fnn.core.types import Scalar
from fnn.optim.schedules.curves import LAST


def numbers(**values: Scalar) -> None:
    for name, value in values.items():
        checks.number(name, value, -math.inf, math.inf)


def horizons(least: float = 0, **values: Scalar) -> None:
    for name, value in values.items():
        checks.number(name, value, least, LAST)


def least_of(value: Scalar) -> float:
    """The lower bound that a number sets for another; 0 if it is traced."""
    return 0 if isinstance(value, jax.core.Tracer) else np.asarray(value).item()


def rows(name: str, items: Any, boundaries: Any) -> tuple[list, list]:
    """Items and boundaries as lists: one more item than boundaries, which ascend."""
    items, boundaries = _listed(name, items), _listed("boundaries", boundaries)
    if len(items) != len(boundaries) + 1:
        raise errors.OptionError(
            f"one more of {name} than of boundaries",
            f"{len(items)} {name} and {len(boundaries)} boundaries",
            "the first is used before the first boundary, the next from it on",
        )
    if name == "values":
        for i, value in enumerate(items):
            numbers(**{f"values[{i}]": value})
    least = 0
    for i, boundary in enumerate(boundaries):
        horizons(least, **{f"boundaries[{i}]": boundary})
        least = max(least, least_of(boundary))
    return items, boundaries


def _listed(name: str, items: Any) -> list:
    vector = isinstance(items, (jax.Array, np.ndarray)) and items.ndim == 1
    if not (vector or isinstance(items, (list, tuple))):
        raise errors.OptionError(
            f"{name} to be a list or one axis of an array", errors.show(items), "pass a list"
        )
    if vector and not isinstance(items, jax.core.Tracer):
        items = np.asarray(items)  # under jit, indexing would trace
    return list(items)
