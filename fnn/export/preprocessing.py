"""Fitted functions of `fnn.data` as JSON, and back.

They are stored as what they are, named trees of arrays, and not as programs: those on strings run
on the host alone, and those on NumPy's arrays compute in float64, where a program would not.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import errors

FITTED = ("Chain", "Encoding", "Imputation", "Limits", "MinMax", "OneHot", "Standard")


def as_json(fitted: Any) -> Any:
    """A fitted function, or a dict of them, as what JSON holds."""
    name = type(fitted).__name__
    if name in FITTED and type(fitted) is _type(name):
        return {"type": name, "fields": {f: as_json(getattr(fitted, f)) for f in fitted._fields}}
    if isinstance(fitted, Mapping):
        return {"dict": {str(key): as_json(value) for key, value in fitted.items()}}
    if isinstance(fitted, (list, tuple)):
        return {"list" if isinstance(fitted, list) else "tuple": [as_json(f) for f in fitted]}
    if isinstance(fitted, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(fitted)
        if array.dtype.kind in "biuf":
            values = {"values": array.reshape(-1).tolist(), "shape": list(array.shape)}
            return {"array": array.dtype.name, **values}
    if fitted is None:
        return None
    raise errors.InputError(
        f"preprocessing by fitted functions of fnn.data ({errors.names(FITTED)})",
        errors.show(fitted),
        "put other functions into the network, as the first of fnn.serial",
    )


def from_json(said: Any) -> Any:
    """The fitted functions that `as_json` described. Raises ValueError for anything else."""
    if said is None:
        return None
    if not isinstance(said, dict):
        raise ValueError("describes no fitted function")
    if set(said) == {"type", "fields"} and said["type"] in FITTED:
        make = _type(said["type"])
        if not isinstance(said["fields"], dict) or set(said["fields"]) != set(make._fields):
            raise ValueError(f"describes no {said['type']}")
        return make(**{name: from_json(value) for name, value in said["fields"].items()})
    if set(said) == {"dict"} and isinstance(said["dict"], dict):
        return {name: from_json(value) for name, value in said["dict"].items()}
    if len(said) == 1 and isinstance(found := said.get("list", said.get("tuple")), list):
        return ("list" in said and list or tuple)(map(from_json, found))
    if set(said) == {"array", "values", "shape"}:
        return _array(said)
    raise ValueError("describes no fitted function")


def _array(said: dict) -> np.ndarray:
    shape, values = said["shape"], said["values"]
    good = isinstance(shape, list) and isinstance(values, list) and len(shape) <= 32
    if not good or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError("describes no array")
    if math.prod(shape) != len(values) or not {type(v) for v in values} <= {bool, int, float}:
        raise ValueError("describes no array")
    dtype = jnp.dtype(said["array"])
    if dtype.kind not in "biuf":
        raise ValueError("describes no array of numbers")
    return np.array(values, dtype).reshape(shape)


def _type(name: str) -> Any:
    return getattr(importlib.import_module("fnn.data"), name)
