"""Params stored in fewer bits, and computed with in their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.declarations import Param, declared, output_axis
from fnn.core.dtypes import is_floating
from fnn.core.lengths import divide
from fnn.core.types import Dtype, Tree

LEVELS = 127  # of int8 on either side of zero


def narrowed(params: Tree, specs: Tree, dtype: Dtype) -> tuple[Tree, Callable[[Tree], Tree]]:
    """Params as they are stored, and the function that makes params of them again.

    A floating dtype takes all floating params. int8 takes kernels and embeddings: the output
    feature o of each becomes {"int8": q, "scale": s}, with s_o = max |w_o| / 127, q = round(w / s).
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

    def decode(stored: Tree) -> Tree:
        return jax.tree.map(_restored, like, stored)

    return stored, decode


def _stored(w: Any, param: Param) -> Any:
    if param.kind not in ("kernel", "embedding") or not is_floating(w) or len(param.shape) < 2:
        return w
    lead = len(param.stack)
    kept = {*range(lead), lead + output_axis(param)}
    over = tuple(axis for axis in range(w.ndim) if axis not in kept)
    wide = jnp.asarray(w).astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=over, keepdims=True, initial=0) / LEVELS
    return {"int8": jnp.round(divide(wide, scale)).astype(jnp.int8), "scale": scale}


def _restored(dtype: Any, stored: Any) -> Any:
    if not isinstance(stored, dict):
        return stored
    return (stored["int8"].astype(jnp.float32) * stored["scale"]).astype(dtype)
