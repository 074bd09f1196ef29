"""The cache of keys and values for decoding."""

from __future__ import annotations

import jax
import jax.core
import jax.numpy as jnp

from fnn.core import errors
from fnn.core.declarations import Param
from fnn.core.layer import Layer, leaf
from fnn.initializers import zeros
from fnn.layers.attention.rotary import rotated


def cache(max_len: int, rotary: float | None) -> Layer:
    """Append k and v [..., T, K, D] to those in the state: (q, all k, all v, first position)."""

    def specs(q, k, v):
        if k.shape[-3] > max_len:
            _full(0, k.shape[-3], max_len)
        shape = (*k.shape[:-3], max_len, *k.shape[-2:])
        kept = {name: Param(shape, zeros, k.dtype, "cache") for name in ("k", "v")}
        return {}, {**kept, "index": Param((), zeros, jnp.int32, "cache")}

    def apply(params, state, q, k, v, *, key, train):
        start, length = state["index"], k.shape[-3]
        if not isinstance(start, jax.core.Tracer) and int(start) + length > max_len:
            _full(int(start), length, max_len)
        if rotary is not None:
            q, k = (rotated(values, rotary, start) for values in (q, k))
        new = {"index": start + length}
        for name, values in (("k", k), ("v", v)):
            whole = jax.lax.dynamic_update_slice_in_dim(state[name], values, start, axis=-3)
            new[name] = jnp.where(start + length > max_len, jnp.nan, whole).astype(k.dtype)
        return (q, new["k"], new["v"], start), new

    return leaf("cache", specs, apply)


def _full(start: int, length: int, max_len: int) -> None:
    raise errors.InputError(
        f"no more than cache={max_len} positions",
        f"{length} after {start}",
        "build it with a longer cache, or start again with a new state",
    )
