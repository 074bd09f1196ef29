"""The leaves of a tree, as a checkpoint names and describes them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Final, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from fnn.core import errors
from fnn.core.dtypes import is_key
from fnn.core.types import Tree

Path: TypeAlias = tuple[str, ...]
# A leaf without its values: "dtype" and "shape" of an array, and "key", the dtype of random keys,
# of which the array is the data; or the "value" of a Python scalar, a string or None.
Entry: TypeAlias = dict[str, Any]

HOST: Final = "host"
# Where an array is read to: NumPy's memory, the first device, or devices by a sharding.
Place: TypeAlias = Literal["host"] | Sharding | None


def is_value(x: Any) -> bool:
    """Whether a leaf is stored in the manifest itself."""
    return x is None or type(x) in (bool, int, float, str)


def joined(path: Path) -> str:
    """A path as text: "conv1/kernel"; a "/" or "~" inside a name is written "~1" or "~0".

    >>> joined(("params", "a/b"))
    'params/a~1b'
    """
    return "/".join(name.replace("~", "~0").replace("/", "~1") for name in path)


def separate(path: str) -> Path:
    """The names of a joined path.

    >>> separate("params/a~1b")
    ('params', 'a/b')
    """
    names = path.split("/") if path else []
    return tuple(name.replace("~1", "/").replace("~0", "~") for name in names)


def leaves_of(tree: Tree) -> Iterator[tuple[Path, Any]]:
    """Each leaf, None included, with the names on the way to it."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    for keys, leaf in flat:
        yield tuple(_name(key) for key in keys), leaf


def _name(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def entry_of(path: Path, leaf: Any) -> Entry:
    """What a manifest says of a leaf, or of a struct that stands for it."""
    if is_value(leaf):
        return {"value": leaf}
    if is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return {"dtype": data.dtype.name, "shape": list(data.shape), "key": str(leaf.dtype)}
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
        raise errors.InputError(
            f"an array, a number, a string or None at {joined(path)}",
            errors.show(leaf),
            "leave it out of the tree",
        )
    dtype = np.dtype(leaf.dtype)
    if dtype.hasobject or dtype.names or dtype.kind in "USMm":
        raise errors.DtypeError(
            f"numbers or booleans at {joined(path)}", f"an array of {dtype}", "leave it out"
        )
    return {"dtype": dtype.name, "shape": [int(n) for n in leaf.shape]}


def describe(entry: Entry) -> str:
    """An entry in a message."""
    if "value" in entry:
        return json.dumps(entry["value"])
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if "key" in entry:
        return f"{shape[:-1]} {entry['key']}"
    return f"{shape} {dtype}"


def dtype_of(entry: Entry) -> np.dtype:
    return jnp.dtype(entry["dtype"])


def nbytes_of(entry: Entry) -> int:
    """The bytes in a file of an array."""
    return 0 if "value" in entry else math.prod(entry["shape"]) * dtype_of(entry).itemsize


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array that is in C order; no copy."""
    return array.reshape(-1).view(np.uint8)


def from_bytes(data: np.ndarray, entry: Entry, shape: list[int]) -> np.ndarray:
    return data.view(dtype_of(entry)).reshape(shape)
