"""The cache of keys and values for decoding."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import errors
from fnn.core.declarations import Param
from fnn.core.layer import Layer, leaf
from fnn.initializers import zeros
from fnn.layers.attention.rotary import rotated


class Cached(NamedTuple):
    """Queries, and all the keys and values so far."""

    q: jax.Array  # [..., T, N, D]
    k: jax.Array  # [..., S, K, D]
    v: jax.Array
    at: jax.Array  # [..., T]: the places of the queries among the keys
    segments: tuple[jax.Array, jax.Array]  # [..., T] and [..., S]


def cache(max_len: int, rotary: float | None) -> Layer:
    """Append k and v [..., T, K, D] to those in the state, each row after its own last one.

    What is in segment 0 is padding, which takes no place: rows of any lengths, padded on either
    side, go on as each would alone.
    """

    def specs(q, k, v, segments):
        if k.shape[-3] > max_len:
            _full(0, k.shape[-3], max_len)
        lead = k.shape[:-3]
        kept = {
            name: Param((*lead, max_len, *k.shape[-2:]), zeros, k.dtype, "cache") for name in "kv"
        }
        segment = Param((*lead, max_len), zeros, jnp.int32, "cache")
        return {}, {**kept, "segments": segment, "index": Param(lead, zeros, jnp.int32, "cache")}

    def apply(params, state, q, k, v, segments, *, key, train):
        start, shape = state["index"], k.shape[:-2]  # [...], [..., T]
        if segments is None:
            segments = jnp.ones(shape, jnp.int32)
            count = shape[-1]
            at = start[..., None] + jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape)
        else:
            segments = segments.astype(jnp.int32)
            number = jnp.cumsum(segments > 0, axis=-1, dtype=jnp.int32)
            count = number[..., -1]
            at = jnp.maximum(start[..., None] + number - 1, 0)
        _check_room(start, count, max_len)
        if rotary is not None:
            q, k = (rotated(values, rotary, at) for values in (q, k))
        new = {"index": start + count}
        place = jnp.where(segments > 0, at, max_len)
        for name, values in (("k", k), ("v", v), ("segments", segments)):
            new[name] = _written(state[name], values, place, start.ndim)
        full = new["index"] > max_len  # then and for ever after, what is asked has no answer
        q = jnp.where(full.reshape(*full.shape, 1, 1, 1), jnp.nan, q).astype(q.dtype)
        return Cached(q, new["k"], new["v"], at, (segments, new["segments"])), new

    return leaf("cache", specs, apply)


def _written(whole: jax.Array, values: jax.Array, place: jax.Array, lead: int) -> jax.Array:
    """An array [..., S, ...] with values [..., T, ...] at places [..., T]; S is no place."""

    def write(whole, values, place):
        return whole.at[place].set(values, mode="drop")

    for _ in range(lead):
        write = jax.vmap(write)
    return write(whole, values, place)


def _check_room(start: Any, count: Any, max_len: int) -> None:
    if isinstance(start, jax.core.Tracer) or isinstance(count, jax.core.Tracer):
        return
    start = np.ravel(start)
    count = np.broadcast_to(np.ravel(count), start.shape)
    for row in np.flatnonzero(start + count > max_len)[:1]:
        _full(int(start[row]), int(count[row]), max_len)


def _full(start: int, length: int, max_len: int) -> None:
    raise errors.InputError(
        f"no more than cache={max_len} positions",
        f"{length} after {start}",
        "build it with a longer cache, or start again with a new state",
    )
