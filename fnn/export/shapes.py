"""Inputs of any size: shapes whose sizes may be names, and what a manifest says of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from fnn.core import errors
from fnn.core.dtypes import is_key
from fnn.core.shapes import native_dtype
from fnn.core.types import Tree


def scope_of(constraints: Iterable[str]) -> jax.export.SymbolicScope:
    """One scope for all names of sizes in an artifact."""
    try:
        return jax.export.SymbolicScope(tuple(constraints))
    except ValueError as error:
        got = f"{tuple(constraints)} ({_line(error)})"
        raise errors.OptionError("constraints of sizes", got, 'write "time <= 128"') from error


def inputs_of(shapes: Any, scope: jax.export.SymbolicScope) -> tuple[Tree, ...]:
    """A ShapeDtypeStruct for each array of the inputs, whose named sizes are in the scope.

    - `shapes`: one input, or several in a list or tuple. Each is an array, a struct, a shape, of
      float32, or a tree of these.
    """
    several = isinstance(shapes, (list, tuple)) and not is_form(shapes)
    xs = tuple(shapes) if several else (shapes,)
    return jax.tree.map(lambda x: _struct(x, scope), xs, is_leaf=is_form)


def is_form(x: Any) -> bool:
    """Whether x is a shape: a tuple of sizes, each a number or a name."""
    return type(x) is tuple and all(map(_is_size, x))


def _is_size(d: Any) -> bool:
    if isinstance(d, (int, np.integer, str)):
        return not isinstance(d, bool)
    return jax.export.is_symbolic_dim(d)


def _struct(x: Any, scope: jax.export.SymbolicScope) -> jax.ShapeDtypeStruct:
    shape, dtype = (x, jnp.float32) if is_form(x) else _shape_and_dtype(x)
    sizes = []
    for size in shape:
        if isinstance(size, (int, np.integer)):
            sizes.append(int(size))
            continue
        try:
            sizes += jax.export.symbolic_shape(str(size), scope=scope)
        except ValueError as error:
            got = f"{size!r} ({_line(error)})"
            raise errors.OptionError("names of sizes", got, 'write "batch" or "2*time"') from error
    return jax.ShapeDtypeStruct(tuple(sizes), dtype)


def _shape_and_dtype(x: Any) -> tuple[Any, Any]:
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        wanted = "arrays, ShapeDtypeStructs or shapes"
        mend = 'pass ("batch", 28, 28, 1), and several inputs in a list'
        raise errors.InputError(wanted, errors.show(x), mend)
    dtype = native_dtype(x.dtype) if isinstance(x, (np.ndarray, np.generic)) else x.dtype
    if dtype is None:
        raise errors.DtypeError("inputs of numbers", errors.show(x), "encode them as numbers")
    if is_key(x):
        mend = "pass jax.random.key_data, and wrap it in the network"
        raise errors.DtypeError("inputs of numbers", errors.show(x), mend)
    return x.shape, dtype


def described(names: list[str], xs: Iterable[Tree]) -> list[dict[str, Any]]:
    """What a manifest says of arrays: each one's name, shape and dtype."""
    said = []
    for name, x in zip(names, xs, strict=True):
        for keys, leaf in jax.tree_util.tree_leaves_with_path(x):
            shape = [d if isinstance(d, int) else str(d) for d in leaf.shape]
            path = errors.path_in(name, keys)
            said.append({"name": path, "shape": shape, "dtype": jnp.dtype(leaf.dtype).name})
    return said


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
