"""softmax(q k^T / sqrt(D)) v, whole or in blocks of queries."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core.dtypes import wide
from fnn.core.shapes import blocks_of
from fnn.layers.attention.masks import and_past, past

LARGEST = 2**28  # bytes of scores that are made at once
GROUPS = 2  # of blocks that see the same keys, where a block sees its past alone; each takes memory


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    causal: bool = False,
    implementation: Any = None,
    block: int | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v over q [..., T, N, D], k and v [..., S, K, D], with zeros where a
    query sees nothing.

    - `mask`: where t may attend to s, [..., N or 1, T or 1, S or 1]; None for everywhere.
    - `causal`: t attends to no s > t besides.
    - `block`: the number of queries whose scores [N, block, S] are made at once; None is all of
      them, or so many that the scores are no larger than `LARGEST`.
    """
    *lead, t, n, d = q.shape
    if 0 in q.shape or 0 in k.shape:
        return jnp.zeros_like(q)
    batch, bad = math.prod(lead), None
    q, k, v = (x.reshape(batch, *x.shape[-3:]) for x in (q, k, v))
    if mask is not None:
        sizes = mask.shape[-3:]
        mask = jnp.broadcast_to(mask, (*lead, *sizes)).reshape(batch, *sizes)
    if mask is not None or causal:
        bad = ~jnp.all(jnp.isfinite(v), axis=(-2, -1))  # [B, S]: 0 NaN would be NaN for every t
        v = jnp.where(bad[..., None, None], jnp.zeros_like(v), v)
    if implementation is None or q.dtype == jnp.float64:  # jax.nn's would compute in float32
        y = _in_blocks(q, k, v, mask, bad, causal, block or _block(q, k))
    else:
        y = _by_jax(q, k, v, mask, bad, causal, implementation)
    return y.reshape(*lead, t, n, d)


def _block(q: jax.Array, k: jax.Array) -> int:
    """All queries, or a power of two of them whose scores take no more than `LARGEST`."""
    b, t, n, _ = q.shape
    row = b * n * k.shape[1] * wide(q.dtype).itemsize
    if t * row <= LARGEST:
        return t
    return 2 ** max(0, int(math.log2(LARGEST / 4 / row))) if row < LARGEST / 4 else 1


def _in_blocks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    bad: jax.Array | None,
    causal: bool,
    size: int,
) -> jax.Array:
    """Block after block of queries: of scores there are [B, N, size, S] at any time.

    Each block has whole rows of scores, so that its softmax is the plain one, and the gradient
    makes them again (Rabe and Staats 2021; here without their blocks of keys, which would save
    nothing more: a block of rows is linear in S). Causal blocks leave out keys that none of their
    group sees.
    """
    t, s = q.shape[1], k.shape[1]
    if size >= t:
        return _rows(q, k, v, mask, bad, jnp.arange(t, dtype=jnp.int32) if causal else None)
    count = -(-t // size)
    queries, masks = blocks_of(q, size, 1), None
    if mask is not None and mask.shape[2] > 1:  # one for each query
        masks = blocks_of(mask, size, 2)
    at = jnp.arange(count * size, dtype=jnp.int32).reshape(count, size)

    def group(first, last):
        end = min(last * size, s) if causal else s  # no key from here on is seen
        keys, values, bads = (_before(x, 1, end) for x in (k, v, bad))

        def one(block):
            q, own, at = block
            seen = _before(mask if own is None else own, 3, end)
            return _rows(q, keys, values, seen, bads, at if causal else None)

        some = jax.tree.map(lambda x: x[first:last], (queries, masks, at))
        return jax.lax.map(jax.checkpoint(one, prevent_cse=False), some)

    groups = min(GROUPS, count) if causal else 1
    edges = [count * i // groups for i in range(groups + 1)]
    y = jnp.concatenate([group(*ends) for ends in itertools.pairwise(edges)])
    y = jnp.moveaxis(y, 0, 1)  # [B, count, size, N, D]
    return y.reshape(y.shape[0], count * size, *y.shape[3:])[:, :t]


def _before(x: Any, axis: int, end: int) -> Any:
    """The first entries of an axis of keys, unless it is 1 for all of them."""
    if x is None or x.shape[axis] == 1:
        return x
    return jax.lax.slice_in_dim(x, 0, end, axis=axis)


def _rows(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    bad: jax.Array | None,
    at: jax.Array | None,
) -> jax.Array:
    """For queries [B, T, N, D]: as matrix products, one per head of k; the heads of q that share it
    are further rows.

    - `at`: the positions of the queries [T], which see no later key; None if they see all.
    """
    dtype = wide(q.dtype)
    if at is not None:
        before = past(at, jnp.arange(k.shape[1], dtype=jnp.int32), 4)
        mask = before if mask is None else mask & before
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # [B, N or K, T or S, D]
    batch, n, t, d = q.shape
    heads, s = k.shape[1:3]
    rows = q.reshape(batch, heads, n // heads * t, d)
    scores = jnp.einsum("bktd,bksd->bkts", rows, k, preferred_element_type=dtype)
    scores = scores.reshape(batch, n, t, s) / jnp.asarray(math.sqrt(d), dtype)
    if mask is not None and bad is not None:
        spoiled = jnp.where(bad, jnp.asarray(jnp.nan, dtype), 0)[:, None, None, :]
        scores = jnp.where(mask, scores + spoiled, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(scores).astype(v.dtype).reshape(batch, heads, -1, s)
    y = jnp.einsum("bkts,bksd->bktd", weights, v)
    y = jnp.swapaxes(y.reshape(batch, n, t, d), 1, 2)
    return y if mask is None else jnp.where(_any_of(mask), y, jnp.zeros_like(y))


def _any_of(mask: jax.Array) -> jax.Array:
    """Whether t sees any s at all, [B, N or 1, T or 1, S or 1] -> [B, T or 1, N or 1, 1]."""
    return jnp.swapaxes(jnp.any(mask, axis=-1), 1, 2)[..., None]


def _by_jax(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    bad: jax.Array | None,
    causal: bool,
    implementation: Any,
) -> jax.Array:
    """By `jax.nn.dot_product_attention`; bad is None if every query sees every key."""
    t, s = q.shape[1], k.shape[1]
    if bad is not None:
        bad = bad | ~jnp.all(jnp.isfinite(k), axis=(-2, -1))  # it may mask by adding
        k = jnp.where(bad[..., None, None], jnp.zeros_like(k), k)
    if mask is not None:
        if causal:
            mask, causal = and_past(mask, t), False
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], t, s))
    with jax.numpy_dtype_promotion("standard"):  # it promotes narrow floats inside
        y = jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, implementation=implementation
        )
    if bad is None:
        return y
    if mask is None:
        sees_bad = jax.lax.cummax(bad.astype(jnp.int8), axis=1)[..., None, None] > 0  # [B, T, 1, 1]
        return jnp.where(sees_bad, jnp.asarray(jnp.nan, y.dtype), y)
    y = jnp.where(_any_of(mask), y, jnp.zeros_like(y))
    sees_bad = _any_of(mask & bad[:, None, None, :])
    return jnp.where(sees_bad, jnp.asarray(jnp.nan, y.dtype), y)
