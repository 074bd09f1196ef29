"""softmax(q k^T / sqrt(D)) v: whole, in blocks of queries, or by `jax.nn`."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from fnn.layers.attention.blocks import past_in_blocks, size_of, window_in_blocks
from fnn.layers.attention.cpu_pieces import pieces_of
from fnn.layers.attention.masks import any_within
from fnn.layers.attention.rows import Keys, Queries, Rule, any_of, rows, visible

ALL = Rule()  # every query sees every key


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    rule: Rule = ALL,
    *,
    bias: jax.Array | None = None,
    segments: tuple[jax.Array, jax.Array] | None = None,
    at: jax.Array | None = None,
    implementation: Any = None,
    block: int | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v over q [..., T, N, D], k and v [..., S, K, D], with zeros where a
    query sees nothing.

    - `mask`: where t may attend to s, [..., N or 1, T or 1, S or 1]; None for everywhere.
    - `rule`: where it may besides, and how scores become weights.
    - `bias`: what is added to the scores, of shapes as in `mask`.
    - `segments`: of the queries [..., T] and the keys [..., S]; t sees s in the same one, above 0.
    - `at`: positions of the queries among the keys, [..., T]; None is 0, 1, 2 ...
    - `implementation`: None, or one of `jax.nn.dot_product_attention`.
    - `block`: the number of queries whose scores [N, block, S] are made at once; None is all of
      them, or so many that the scores are no larger than `blocks.LARGEST`.
    """
    *lead, t, n, d = q.shape
    if 0 in q.shape or 0 in k.shape:
        return jnp.zeros_like(q)
    batch, s, in_order, bad = math.prod(lead), k.shape[-3], at is None, None
    q, k, v = (x.reshape(batch, *x.shape[-3:]) for x in (q, k, v))
    any_size = any(map(is_symbolic_dim, (t, s)))  # of an exported program
    if in_order and rule.window is not None and not any_size and rule.window >= max(t, s):
        rule = rule._replace(window=None)
    if mask is not None or segments is not None or rule.causal or rule.window is not None:
        bad = ~jnp.all(jnp.isfinite(v), axis=(-2, -1))  # [B, S]: 0 NaN would be NaN for every t
        v = jnp.where(bad[..., None, None], jnp.zeros_like(v), v)
    own, theirs = (x.reshape(batch, -1) for x in segments) if segments else (None, None)
    places = jnp.arange(t, dtype=jnp.int32)[None] if at is None else at.reshape(batch, t)
    queries = Queries(q, places, own, _of_batch(mask, lead), _of_batch(bias, lead))
    keys = Keys(k, v, jnp.arange(s, dtype=jnp.int32)[None], theirs, bad)
    if implementation is not None and q.dtype != jnp.float64:  # jax.nn's would be in float32
        return _by_jax(queries, keys, rule, in_order, implementation).reshape(*lead, t, n, d)
    window = rule.window if in_order else None
    size = t if any_size else block or size_of(q, k, rule, window)
    if size < t and window is not None:
        y = window_in_blocks(queries, keys, rule, size)
    elif size < t:
        y = past_in_blocks(queries, keys, rule, size, in_order)
    else:
        whole = functools.partial(rows, rule=rule)
        pieces = None if block else pieces_of(queries, keys, rule, in_order)
        if pieces is None:
            y = whole(queries, keys)
        else:
            y = jax.lax.platform_dependent(queries, keys, cpu=pieces, default=whole)
    return y.reshape(*lead, t, n, d)


def _of_batch(x: jax.Array | None, lead: list[int]) -> jax.Array | None:
    """Masks or biases [..., N, T, S] with one batch axis, of 1 if they are the same for all."""
    if x is None or math.prod(x.shape[:-3]) == 1:
        return x if x is None else x.reshape(1, *x.shape[-3:])
    return jnp.broadcast_to(x, (*lead, *x.shape[-3:])).reshape(-1, *x.shape[-3:])


def _by_jax(
    queries: Queries, keys: Keys, rule: Rule, in_order: bool, implementation: Any
) -> jax.Array:
    """By `jax.nn.dot_product_attention`, which is told of a past and its window where it can be;
    anything else is a mask [B, N or 1, T, S]."""
    q, k, bad = queries.q, keys.k, keys.bad
    (b, t), s = q.shape[:2], k.shape[1]
    if bad is not None:
        bad = bad | ~jnp.all(jnp.isfinite(k), axis=(-2, -1))  # it may mask by adding
        k = jnp.where(bad[..., None, None], jnp.zeros_like(k), k)
    plain = in_order and queries.mask is None and queries.segments is None
    causal = plain and rule.causal
    seen, bias, window = visible(queries, keys, rule), queries.bias, None
    if causal and rule.window is not None:
        window = rule.window - 1, 0
    mask = None if causal else seen
    if mask is not None:
        mask = jnp.broadcast_to(mask, (b, mask.shape[1], t, s))
    if bias is not None:
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], t, s)).astype(q.dtype)
    with jax.numpy_dtype_promotion("standard"):  # it promotes narrow floats inside
        y = jax.nn.dot_product_attention(
            q, k, keys.v, bias, mask, is_causal=causal, local_window_size=window,
            implementation=implementation,
        )  # fmt: skip
    if seen is None or bad is None:
        return y
    if causal:
        back = t if window is None else window[0]
        sees_bad = any_within(bad, back, 0)[..., None, None]  # [B, T, 1, 1]
    else:
        y = jnp.where(any_of(seen), y, jnp.zeros_like(y))
        sees_bad = any_of(seen & bad[:, None, None, :])
    return jnp.where(sees_bad, jnp.asarray(jnp.nan, y.dtype), y)
