"""Penalties on parameters, to be added to a loss."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp

from fnn.core import errors
from fnn.core.dtypes import wide, widest
from fnn.core.types import Tree
from fnn.losses.inputs import floating
from fnn.losses.numerics import magnitude


@errors.named
def l1(params: Tree, select: str | tuple[str, ...] = "kernel") -> jax.Array:
    """Sum of the absolute values of the selected parameters: a tree -> [].

    - `params`: a tree as `net.init` gives it, or a part of one, such as `params["dense1"]`.
    - `select`: a leaf's name, or several; shell wildcards match, "*" all of them. Kernels by
      default: biases and scales are few, and shrinking them gains nothing.

    Summed and returned in float32 or wider, unscaled; the gradient of a zero is 0.
    Raises ParamsError if nothing is selected, DtypeError for a selected leaf that is not floating.

    >>> import fnn
    >>> params = {"dense1": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.ones(2)}}
    >>> print(l1(params), l1(params, ("kernel", "bias")))
    3.0 5.0
    """
    return _sum(magnitude, params, select)


@errors.named
def l2(params: Tree, select: str | tuple[str, ...] = "kernel") -> jax.Array:
    """Sum of the squares of the selected parameters, without a factor 1/2: a tree -> [].

    - `params`: a tree as `net.init` gives it, or a part of one, such as `params["dense1"]`.
    - `select`: a leaf's name, or several; shell wildcards match, "*" all of them. Kernels by
      default: biases and scales are few, and shrinking them gains nothing.

    Summed and returned in float32 or wider, unscaled.
    Raises ParamsError if nothing is selected, DtypeError for a selected leaf that is not floating.

    >>> params = {"dense1": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.ones(2)}}
    >>> print(l2(params), l2(params, "b*"))
    5.0 2.0
    """
    return _sum(jnp.square, params, select)


def _sum(measure: Callable, params: Tree, select: str | tuple[str, ...]) -> jax.Array:
    patterns = (select,) if isinstance(select, str) else select
    if not (isinstance(patterns, tuple) and patterns and all(isinstance(p, str) for p in patterns)):
        raise errors.OptionError(
            "select to be a leaf's name or a tuple of them",
            errors.show(select),
            "pass select=('kernel', 'embedding')",
        )
    leaves, known, terms = jax.tree_util.tree_leaves_with_path(params), [], []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        known.append(name)
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            where = errors.path_of(path)
            leaf = floating(where, leaf)
            terms.append(jnp.sum(measure(leaf.astype(wide(leaf.dtype)))))
    if not terms:
        raise errors.ParamsError(
            f"params with a leaf named {errors.names(patterns)}",
            f"leaves named {errors.names(sorted(set(filter(None, known))))}",
            "pass params from net.init, and select= the names to penalize",
        )
    total = terms[0]
    for term in terms[1:]:
        dtype = widest(total.dtype, term.dtype)
        total = total.astype(dtype) + term.astype(dtype)
    return total
