"""Applying what was fitted: to NumPy's arrays on the host, to JAX's wherever they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import errors
from fnn.core.dtypes import is_floating, wide
from fnn.core.shapes import from_numpy, of_rank
from fnn.core.types import Tree
from fnn.data.statistics import mapped, refuse_others


def apply(name: str, formula: Callable, x: Tree, *stats: Tree) -> Tree:
    """formula(np or jnp, x, *stats) for each leaf; the result has x's float dtype.

    NumPy's arrays are computed in float64, JAX's in float32 at least. Integers and booleans give
    float32.
    """

    def call(a, *of_leaf):
        for stat in of_leaf:
            _check_fits(a, stat)
        return _computed(formula, a, of_leaf)

    return each_leaf(name, call, x, *stats)


def each_leaf(name: str, call: Callable, x: Tree, *stats: Tree) -> Tree:
    """`call` for each leaf of x, which has the structure of the data that was fitted."""

    with errors.within(name):
        given, fitted = jax.tree.structure(x), jax.tree.structure(stats[0])
        if given != fitted:
            raise errors.ShapeError(
                f"x like the data of the fit, {_form(fitted)}", errors.show(x), "pass such a tree"
            )
        return mapped(call, x, *stats)


def by_numpy(x: Any, *stats: Any) -> bool:
    """Whether to compute with NumPy: x is NumPy's, and nothing is traced."""
    traced = any(isinstance(stat, jax.core.Tracer) for stat in stats)
    return isinstance(x, (np.ndarray, np.generic)) and not traced


def check_array(x: Any) -> None:
    if not isinstance(x, (np.ndarray, np.generic, jax.Array)):
        raise errors.InputError("arrays", errors.show(x), "make arrays of x")


def _computed(formula: Callable, x: Any, stats: tuple) -> Any:
    refuse_others(np.asarray(x) if isinstance(x, np.generic) else x)
    dtype = x.dtype.newbyteorder("=") if is_floating(x) else np.dtype(np.float32)
    if by_numpy(x, *stats):
        arrays = [np.asarray(a).astype(np.float64) for a in (x, *stats)]
        y = formula(np, arrays[0], *(of_rank(stat, x.ndim) for stat in arrays[1:]))
        return np.asarray(y).astype(dtype)
    arrays = [from_numpy(a, "what was fitted").astype(wide(dtype)) for a in (x, *stats)]
    y = formula(jnp, arrays[0], *(of_rank(stat, x.ndim) for stat in arrays[1:]))
    return y.astype(dtype)


def _check_fits(x: Any, stat: Any) -> None:
    """The last axes of x are those of the statistic; an axis that shares it has size 1 there."""
    check_array(x)
    rank = stat.ndim
    last = x.shape[x.ndim - rank :] if x.ndim >= rank else ()
    pairs = list(zip(last, stat.shape, strict=False))
    if len(pairs) < rank or any(n != s and (s != 1 or i == 0) for i, (n, s) in enumerate(pairs)):
        axes = ["..."] + [str(s) if s != 1 or i == 0 else "any" for i, s in enumerate(stat.shape)]
        raise errors.ShapeError(
            f"x [{', '.join(axes)}], as in the fit",
            f"x {tuple(x.shape)}",
            "pass the columns that were fitted, or fit anew",
        )


def _form(treedef: Any) -> str:
    names = jax.tree.unflatten(treedef, ["[...]"] * treedef.num_leaves)
    return errors.show(names).replace("'", "")
