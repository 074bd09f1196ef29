"""Attention in blocks of queries, so that few scores exist at any time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from fnn.core.dtypes import wide
from fnn.core.shapes import blocks_of
from fnn.layers.attention.rows import Keys, Queries, Rule, rows

LARGEST = 2**28  # bytes of scores that are made at once
GROUPS = 2  # of blocks; each takes memory
PARTS = {512: 4, 128: 2}  # of at least so many queries; each compiles its own products
LEAST = 128  # queries in a block, unless their scores are too many in one example alone
AXES = (1, 1, 1, 2, 2)  # of queries, in what belongs to them
NOWHERE = -(2**30)  # the position of a key that fills up a block: outside every window


def size_of(q: jax.Array, k: jax.Array, rule: Rule, window: int | None) -> int:
    """How many queries at once: all, or a power of two whose scores are a quarter of `LARGEST`.

    In a program exported for any sizes it is all.

    A large batch makes them no fewer than `LEAST`: it may be cut over devices, each of which would
    go through many blocks of a few queries. With a window they are no more than it holds, if that
    leaves out most of the keys.
    """
    b, t, n, _ = q.shape
    if any(map(is_symbolic_dim, (b, t, k.shape[1]))):  # unknown until the program runs
        return t
    one = n * wide(q.dtype).itemsize  # score for each head
    whole = b * t * k.shape[1] * one <= LARGEST
    if window is None:
        row = k.shape[1] * one
        of_all, of_each = (power_of_two(LARGEST / 4 / (count * row)) for count in (b, 1))
        return t if whole else max(of_all, min(LEAST, of_each))
    beside = (window - 1) * (1 if rule.causal else 2)
    size = power_of_two(max(window, LEAST))
    while size > 1 and size * (size + beside) * one * (b if size > LEAST else 1) > LARGEST / 4:
        size //= 2
    return t if whole and 2 * (size + beside) > t else size


def power_of_two(x: float) -> int:
    """The largest power of two up to x, at least 1."""
    return 2 ** max(0, int(math.log2(max(x, 1))))


def past_in_parts(queries: Queries, keys: Keys, rule: Rule, count: int) -> jax.Array:
    """`rows` where queries and keys have the positions 0, 1, 2 ... and queries see their past.

    Each of so many parts has the keys up to its end: of 4, the scores that are made are 5 of 8.
    """
    t, s = queries.q.shape[1], keys.k.shape[1]

    def part(start, stop):
        end = min(stop, s)  # no key from here on is seen
        own = _with_keys(_these(queries, start, stop), 0, end)
        return rows(own, _some(keys, 0, end), rule)

    edges = [t * i // count for i in range(count + 1)]
    return jnp.concatenate([part(*ends) for ends in itertools.pairwise(edges)], axis=1)


def parts_of(queries: Queries, rule: Rule) -> int:
    """In how many parts queries that see their past alone are faster on CPU."""
    fits = (count for least, count in PARTS.items() if queries.q.shape[1] >= least)
    return next(fits, 1) if rule.causal else 1


def past_in_blocks(
    queries: Queries, keys: Keys, rule: Rule, size: int, in_order: bool, groups: int = GROUPS
) -> jax.Array:
    """Block after block of queries: of scores there are [B, N, size, S] at any time.

    Each block has whole rows of scores, so that its softmax is the plain one, and the gradient
    makes them again (Rabe and Staats 2021; here without their blocks of keys, which would save
    nothing more: a block of rows is linear in S). Causal blocks leave out keys that none of their
    group sees.

    - `in_order`: whether queries and keys both have the positions 0, 1, 2 ...
    - `groups`: of blocks that see the same keys, where a block sees its past alone.
    """
    t, s = queries.q.shape[1], keys.k.shape[1]
    count, causal = -(-t // size), rule.causal and in_order
    parts, whole = _cut(queries, size)

    def group(first, last):
        end = min(last * size, s) if causal else s  # no key from here on is seen
        seen = _some(keys, 0, end)

        def one(part):
            own = _joined(part, whole)
            return rows(_with_keys(own, 0, end), seen, rule)

        some = jax.tree.map(lambda x: x[first:last], parts)
        return jax.lax.map(jax.checkpoint(one, prevent_cse=False), some)

    groups = min(groups, count) if causal else 1
    edges = [count * i // groups for i in range(groups + 1)]
    y = jnp.concatenate([group(*ends) for ends in itertools.pairwise(edges)])
    return _flat(y)[:, :t]


def window_in_blocks(queries: Queries, keys: Keys, rule: Rule, size: int) -> jax.Array:
    """Block after block of queries, with the keys of its window alone: time linear in T.

    Spans of several blocks take their keys from a copy that overlaps with their neighbours': the
    gradient of each block's slice then adds to the keys of a span, not to all.

    Queries and keys both have the positions 0, 1, 2 ...
    """
    assert rule.window is not None
    t, back = queries.q.shape[1], rule.window - 1
    ahead = 0 if rule.causal else back
    span = size * max(1, -(-back // size))
    count, length = -(-t // span), size + back + ahead  # spans, and the keys of a block
    queries = queries._replace(
        mask=_padded_keys(queries.mask, back, count * span - t + ahead),
        bias=_padded_keys(queries.bias, back, count * span - t + ahead),
    )
    spans, whole = _cut(queries, span)
    starts = jnp.arange(count, dtype=jnp.int32) * span
    at = starts[:, None, None] + jnp.arange(-back, span + ahead, dtype=jnp.int32)[None, None, :]
    copies: Any = [x if x is None else _overlapping(x, span, back, ahead) for x in keys]
    overlapping = Keys(*copies)._replace(at=jnp.where((at >= 0) & (at < t), at, NOWHERE))

    def of_span(given):
        start, part, near = given
        parts, rest = _cut(_joined(part, whole), size)

        def one(given):
            first, part = given
            own = _with_keys(_joined(part, rest), start + first, length)
            return rows(own, _some(near, first, length), rule)

        firsts = jnp.arange(0, span, size, dtype=jnp.int32)
        return jax.lax.map(jax.checkpoint(one, prevent_cse=False), (firsts, parts))

    y = jax.lax.map(of_span, (starts, spans, overlapping))  # [spans, blocks, B, size, N, D]
    return _flat(y.reshape(-1, *y.shape[2:]))[:, :t]


# --- cutting


def _cut(queries: Queries, size: int) -> tuple[Queries, Queries]:
    """What each block of queries has for itself, stacked, and what all of them share."""
    parts: Any = []
    whole: Any = []
    for x, axis in zip(queries, AXES, strict=True):
        shared = x is None or x.shape[axis] == 1
        parts.append(None if x is None or shared else blocks_of(x, size, axis))
        whole.append(x if shared else None)
    return Queries(*parts), Queries(*whole)


def _joined(part: Queries, whole: Queries) -> Queries:
    both: Any = (b if a is None else a for a, b in zip(part, whole, strict=True))
    return Queries(*both)


def _these(queries: Queries, start: int, stop: int) -> Queries:
    """Some of the queries, which follow each other, and what belongs to them."""
    pairs = zip(queries, AXES, strict=True)
    these: Any = (_slice(x, axis, start, stop - start) for x, axis in pairs)
    return Queries(*these)


def _some(keys: Keys, start: Any, length: int) -> Keys:
    """Some of the keys, which follow each other."""
    some: Any = (_slice(x, 1, start, length) for x in keys)
    return Keys(*some)


def _with_keys(queries: Queries, start: Any, length: int) -> Queries:
    """Queries with masks and biases for some of the keys."""
    return queries._replace(
        mask=_slice(queries.mask, 3, start, length), bias=_slice(queries.bias, 3, start, length)
    )


def _slice(x: Any, axis: int, start: Any, length: int) -> Any:
    """Some of an axis of queries or keys, unless there is one entry for all of them."""
    if x is None or x.shape[axis] == 1:
        return x
    if isinstance(start, int):
        return jax.lax.slice_in_dim(x, start, start + length, axis=axis)
    return jax.lax.dynamic_slice_in_dim(x, start, length, axis=axis)


def _padded_keys(x: Any, before: int, after: int) -> Any:
    """A mask or a bias with entries for keys that fill up blocks."""
    if x is None or x.shape[3] == 1:
        return x
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, after)))


def _overlapping(x: Any, span: int, back: int, ahead: int) -> jax.Array:
    """Spans of axis 1 with so many neighbours: [B, S, ...] -> [spans, B, back + span + ahead, ...].

    Both are at most `span`.
    """
    own = blocks_of(x, span, 1)
    none = jnp.zeros_like(own[:1])
    before = jnp.concatenate([none, own[:-1]])[:, :, span - back :]
    after = jnp.concatenate([own[1:], none])[:, :, :ahead]
    return jnp.concatenate([before, own, after], axis=2)


def _flat(y: jax.Array) -> jax.Array:
    """[blocks, B, size, N, D] -> [B, blocks * size, N, D]."""
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:])
