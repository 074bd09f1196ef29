"""Metrics as text and back, to the last bit: valid JSON, in which NaN is a word."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import errors

# JSON has no NaN. These are the words that protobuf's JSON has for them, and what Python's float,
# pandas and JavaScript's Number read.
WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
RESERVED = ("step", "epoch", "time")


def flat(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The metrics by name; the leaves of one that is a tree by `name/path`."""
    for name, value in metrics.items():
        if type(value) is np.ndarray or not isinstance(value, (dict, list, tuple)):
            yield name, value
        else:
            for keys, leaf in jax.tree_util.tree_leaves_with_path(value):
                yield f"{name}/{errors.path_of(keys)}", leaf


def text(name: str, value: Any) -> str:
    """The JSON of a metric: a number, or for an array lists of numbers.

    >>> text("loss", np.float32(0.1)), text("loss", np.float32(np.nan)), text("n", np.arange(2))
    ('0.10000000149011612', '"NaN"', '[0,1]')
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        array = _plain(name, array)
    return _text(array.item() if array.ndim == 0 else array.tolist())


def _text(value: Any) -> str:
    if type(value) is float:
        return repr(value) if value - value == 0 else f'"{_word(value)}"'
    if type(value) is list:
        return f"[{','.join(map(_text, value))}]"
    return repr(value) if type(value) is int else ("true" if value else "false")


def _word(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    """An array of one of JAX's own dtypes, such as bfloat16, in one of NumPy's that holds it."""
    if jnp.issubdtype(array.dtype, np.floating):
        with np.errstate(invalid="ignore"):  # what NumPy says of some NaN of bfloat16
            return array.astype(np.float32 if array.dtype.itemsize <= 2 else np.float64)
    if jnp.issubdtype(array.dtype, np.integer):
        return array.astype(np.int32)
    raise errors.InputError(
        "metrics that are real numbers, or arrays of them",
        f"{name}: {errors.show(array)}",
        "log its parts, or leave it out of the metrics",
    )


@functools.lru_cache(maxsize=4096)
def key(name: str) -> str:
    """A name as JSON, of a column that the log does not itself write."""
    if name in RESERVED:
        mend = "rename the metric: these are the log's own columns"
        raise errors.InputError(
            f"metrics named otherwise than {errors.names(RESERVED)}", name, mend
        )
    return json.dumps(name, ensure_ascii=False)


# --- and back


def from_json(line: bytes) -> dict[str, Any]:
    """The values of a line by name; raises ValueError if it is no row."""
    row = json.loads(line)
    if type(row) is not dict:
        raise ValueError("no JSON object")
    for name, value in row.items():
        if type(value) in (str, list):
            row[name] = _back(value)
    return row


def from_cell(cell: str) -> Any:
    """The value of a cell of a csv file; None if it is empty."""
    if not cell:
        return None
    if cell in WORDS:
        return WORDS[cell]
    try:
        return int(cell)
    except ValueError:
        pass
    try:
        return float(cell)
    except ValueError:
        return _back(json.loads(cell))


def _back(value: Any) -> Any:
    if type(value) is list:
        return [_back(v) for v in value]
    return WORDS[value] if type(value) is str and value in WORDS else value


# --- columns


def column(values: list[Any]) -> np.ndarray:
    """Values, of which None is missing, as an array of the plainest dtype that holds them exactly.

    >>> column([1, 2]), column([1, None]), column([[1.0, 2.0], None]).shape
    (array([1, 2]), array([ 1., nan]), (2, 2))
    """
    there = [v for v in values if v is not None]
    kinds = set(map(type, there))
    if kinds == {list}:
        return _arrays(values, there)
    if not kinds <= {bool, int, float}:
        return _objects(values)
    if there and len(there) == len(values) and float not in kinds:
        return np.array(values) if kinds == {bool} else _whole(values)
    if int in kinds and any(type(v) is int and abs(v) > 2**53 for v in there):
        return _objects(values)
    return np.array([math.nan if v is None else v for v in values], float)


def _whole(values: list[Any]) -> np.ndarray:
    """Integers; beyond those of 64 bits as Python's own."""
    low, high = min(values), max(values)
    if -(2**63) <= low and high < 2**63:
        return np.array(values, np.int64)
    return np.array(values, np.uint64) if 0 <= low and high < 2**64 else _objects(values)


def _arrays(values: list[Any], there: list[Any]) -> np.ndarray:
    """[rows, ...] if all lists have one shape, else an array of lists."""
    shapes = {_shape(value) for value in there}
    shape = shapes.pop()
    if shapes or shape is None:
        return _objects(values)
    missing = [None] * math.prod(shape)
    leaves = [leaf for v in values for leaf in (missing if v is None else _leaves(v))]
    return column(leaves).reshape(len(values), *shape)


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of nested lists; None if they have none."""
    if type(value) is not list:
        return ()
    inner = {_shape(v) for v in value} or {()}
    shape = inner.pop()
    return None if inner or shape is None else (len(value), *shape)


def _leaves(value: Any) -> list[Any]:
    return [leaf for v in value for leaf in _leaves(v)] if type(value) is list else [value]


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array
