"""Params stored in fewer bits, and computed with in their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.declarations import Param, declared
from fnn.core.dtypes import is_floating
from fnn.core.types import Dtype, Tree
from fnn.layers.reparam import of_members
from fnn.layers.rounding import decode, encode


def narrowed(params: Tree, specs: Tree, dtype: Dtype) -> tuple[Tree, Callable[[Tree], Tree]]:
    """Params as they are stored, and the function that makes params of them again.

    A floating dtype takes all floating params. int8 takes kernels and embeddings: the output
    feature o of each becomes {"int8": q, "scale": s}, rounded as by `fnn.stored`.
    """
    if dtype is None:
        return params, lambda params: params
    if jnp.dtype(dtype) != jnp.int8:
        dtype = checks.floating("params_dtype", dtype)
        were = jax.tree.map(lambda a: a.dtype, params)
        stored = jax.tree.map(lambda a: a.astype(dtype) if is_floating(a) else a, params)
        return stored, lambda stored: jax.tree.map(lambda a, old: a.astype(old), stored, were)
    found = declared(specs)
    if jax.tree.structure(params) != jax.tree.structure(found):
        raise errors.ParamsError(
            "params as the network declares them", "others", "pass those that go with it"
        )
    stored = jax.tree.map(_stored, params, found)
    like = jax.tree.map(lambda a: a.dtype, params)

    def restored(stored: Tree) -> Tree:
        return jax.tree.map(_restored, like, found, stored)

    return stored, restored


def _stored(w: Any, param: Param) -> Any:
    if param.kind not in ("kernel", "embedding") or not is_floating(w) or len(param.shape) < 2:
        return w
    held = _of(encode, param)(jnp.asarray(w).astype(jnp.float32))
    return {"int8": held["values"], "scale": held["scale"]}


def _restored(dtype: Any, param: Param, stored: Any) -> Any:
    if not isinstance(stored, dict):
        return stored
    held = {"values": stored["int8"], "scale": stored["scale"]}
    return _of(decode, param)(held).astype(dtype)


def _of(fn: Callable, param: Param) -> Callable:
    """How `fnn.stored` rounds, member by member of a stack."""
    one = functools.partial(fn, param=param, name="int8", group_size=None)
    return of_members(one, param.stack)
