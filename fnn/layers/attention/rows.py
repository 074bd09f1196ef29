"""softmax(q k^T / sqrt(D)) v for some of the queries and some of the keys."""

from __future__ import annotations

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core.dtypes import wide
from fnn.core.types import Key, Scalar
from fnn.layers.attention.masks import near, same_segment
from fnn.layers.dropout import drop_where

TILE = 128  # keys that share one random key of the dropout of weights


class Queries(NamedTuple):
    """Queries, and what belongs to each of them. B, N, T and S may be 1 in masks and biases."""

    q: jax.Array  # [B, T, N, D]
    at: jax.Array  # [B or 1, T]: positions
    segments: jax.Array | None = None  # [B, T]
    mask: jax.Array | None = None  # [B, N, T, S]
    bias: jax.Array | None = None  # [B, N, T, S]


class Keys(NamedTuple):
    """Keys and values, and what belongs to each of them."""

    k: jax.Array  # [B, S, K, D]
    v: jax.Array  # [B, S, K, D], zeros where bad
    at: jax.Array  # [B or 1, S]: positions
    segments: jax.Array | None = None  # [B, S]
    bad: jax.Array | None = None  # [B, S]: where values are not finite


class Rule(NamedTuple):
    """How scores become weights; see `fnn.attention`."""

    causal: bool = False
    window: int | None = None
    soft_cap: Scalar | None = None
    distances: tuple[int, jax.Array] | None = None  # the least distance, and biases [N, distances]
    dropout: tuple[Key, Scalar] | None = None  # key and rate


def rows(queries: Queries, keys: Keys, rule: Rule) -> jax.Array:
    """For queries [B, T, N, D], their outputs [B, T, N, D]; zeros for those that see no key.

    As matrix products, one per head of k; the heads of q that share it are further rows.
    """
    dtype = wide(queries.q.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (queries.q, keys.k, keys.v))
    batch, n, t, d = q.shape
    heads, s = k.shape[1:3]
    grouped = q.reshape(batch, heads, n // heads * t, d)
    scores = jnp.einsum("bktd,bksd->bkts", grouped, k, preferred_element_type=dtype)
    scores = scores.reshape(batch, n, t, s) / jnp.asarray(math.sqrt(d), dtype)
    if rule.soft_cap is not None:
        cap = jnp.asarray(rule.soft_cap).astype(dtype)
        scores = cap * jnp.tanh(scores / cap)
    if queries.bias is not None:
        scores = scores + queries.bias.astype(dtype)
    if rule.distances is not None:
        scores = scores + _by_distance(queries, keys, *rule.distances).astype(dtype)
    seen = visible(queries, keys, rule)
    if seen is not None and keys.bad is not None:
        spoiled = jnp.where(keys.bad, jnp.asarray(jnp.nan, dtype), 0)[:, None, None, :]
        scores = jnp.where(seen, scores + spoiled, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(scores)
    if rule.dropout is not None:
        weights = _dropped(weights, queries, keys, *rule.dropout)
    weights = weights.astype(v.dtype).reshape(batch, heads, -1, s)
    y = jnp.einsum("bkts,bksd->bktd", weights, v)
    y = jnp.swapaxes(y.reshape(batch, n, t, d), 1, 2)
    return y if seen is None else jnp.where(any_of(seen), y, jnp.zeros_like(y))


def visible(queries: Queries, keys: Keys, rule: Rule) -> jax.Array | None:
    """Where t sees s, [B or 1, N or 1, T or 1, S or 1]; None for everywhere."""
    seen = [queries.mask]
    t, s = queries.at[:, None, :, None], keys.at[:, None, None, :]
    seen.append(near(t, s, rule.causal, rule.window))
    if queries.segments is not None and keys.segments is not None:
        t, s = queries.segments[:, None, :, None], keys.segments[:, None, None, :]
        seen.append(same_segment(t, s))
    seen = [x for x in seen if x is not None]
    return functools.reduce(operator.and_, seen) if seen else None


def any_of(seen: jax.Array) -> jax.Array:
    """Whether t sees any s at all, [B, N or 1, T or 1, S or 1] -> [B, T or 1, N or 1, 1]."""
    return jnp.swapaxes(jnp.any(seen, axis=-1), 1, 2)[..., None]


def _by_distance(queries: Queries, keys: Keys, least: int, table: jax.Array) -> jax.Array:
    """Biases [N, distances] for each query and key: [B or 1, N, T, S]."""
    distance = queries.at[:, :, None] - keys.at[:, None, :]  # [B or 1, T, S]
    found = jnp.take(table, distance - least, axis=1, mode="clip")  # beyond are masked ones alone
    return jnp.moveaxis(found, 0, 1)


def _dropped(weights: jax.Array, queries: Queries, keys: Keys, key: Key, rate: Scalar) -> jax.Array:
    """Weights [B, N, T, S] after dropout.

    A query draws for `TILE` keys at once by a key folded from the row of the batch, its position
    and theirs, so that what is dropped does not depend on how queries and keys are cut.
    """
    batch, n, t, s = weights.shape
    # Keys lie side by side, in each row the same, but those that fill up have no position.
    first = jnp.max(keys.at[0] - jnp.arange(s, dtype=jnp.int32))
    tiles = jnp.floor_divide(first, TILE) + jnp.arange(s // TILE + 2, dtype=jnp.int32)
    keep = 1 - jnp.asarray(rate).astype(jnp.float32)

    def draw(row, at, tile):
        own = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, row), at), tile)
        return jax.random.bernoulli(own, keep, (n, TILE))

    draw = jax.vmap(draw, (None, None, 0))
    draw = jax.vmap(jax.vmap(draw, (None, 0, None)), (0, 0, None))
    at = jnp.broadcast_to(queries.at, (batch, t))
    mask = draw(jnp.arange(batch, dtype=jnp.int32), at, tiles)  # [B, T, tiles, N, TILE]
    mask = jnp.transpose(mask, (0, 3, 1, 2, 4)).reshape(batch, n, t, -1)
    mask = jax.lax.dynamic_slice_in_dim(mask, jnp.mod(first, TILE), s, axis=3)
    return drop_where(mask, weights, rate)
