"""Attention on a CPU, where large scores are made in pieces: some examples, or queries, at a time.

XLA's programs take new memory for what they make on their way, and give it back at the end (jaxlib
0.10). On a CPU the first touch of so much memory takes longer than the products that fill it, and
it does not stay in the caches: whole, scores of 16 to 64 MiB take 1.1 to 2.2 times as long, forward
and backward. To be deleted when the rows of benchmarks/tasks/scores.py take no longer without it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from fnn.core.dtypes import wide
from fnn.layers.attention.blocks import parts_of, past_in_blocks, past_in_parts, power_of_two
from fnn.layers.attention.rows import Keys, Queries, Rule, rows

Whole = Callable[[Queries, Keys], jax.Array]

SOME = 2**21  # bytes of scores of the examples that are attended at once
LARGE = 2**24  # of one example, from which on some of its queries are
FEWEST = 64  # queries
GROUPS = 4  # of blocks that see the same keys
PIECES = 4  # of which there are more, or it does not pay


def pieces_of(queries: Queries, keys: Keys, rule: Rule, in_order: bool) -> Whole | None:
    """What computes `rows` on a CPU piece by piece; None if the scores are too small to pay.

    - `in_order`: whether queries and keys both have the positions 0, 1, 2 ...
    """
    if any(map(is_symbolic_dim, (queries.q.shape[1], keys.k.shape[1]))):
        return None
    whole, parts = partial(rows, rule=rule), parts_of(queries, rule) if in_order else 1
    if parts > 1:
        whole = partial(past_in_parts, rule=rule, count=parts)
    if examples := _examples(queries, keys, rule):
        pieces = partial(_examples_in_turn, count=examples, whole=whole)
    elif size := _queries(queries, keys):
        pieces = partial(past_in_blocks, rule=rule, size=size, in_order=in_order, groups=GROUPS)
    else:
        return whole if parts > 1 else None
    options = (*queries[2:], *keys[3:], *rule[1:])  # masks, segments, biases, windows ...
    if rule.causal or any(x is not None for x in options):
        return pieces
    return partial(_fused, pieces=pieces)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _fused(queries: Queries, keys: Keys, pieces: Whole) -> jax.Array:
    """`rows` where every query sees every key, which XLA makes one loop without scores.

    Their derivatives are not: those are of the pieces.
    """
    return rows(queries, keys, Rule())


@_fused.defjvp
def _fused_jvp(pieces, primals, tangents):
    return _fused(*primals, pieces), jax.jvp(pieces, primals, tangents)[1]


def _examples(queries: Queries, keys: Keys, rule: Rule) -> int:
    """How many examples at once; 0 is all."""
    batch, one = queries.q.shape[0], _bytes_of_one(queries, keys)
    if is_symbolic_dim(batch) or rule.dropout is not None:  # drawn by the number of an example
        return 0
    if one > LARGE or batch * one <= PIECES * max(one, SOME):
        return 0
    return next(n for n in range(max(SOME // one, 1), 0, -1) if batch % n == 0)


def _queries(queries: Queries, keys: Keys) -> int:
    """How many queries at once; 0 is all."""
    batch, t, *_ = queries.q.shape
    if is_symbolic_dim(batch) or (scores := batch * _bytes_of_one(queries, keys)) <= 2 * LARGE:
        return 0
    size = max(power_of_two(t * LARGE / 2 / scores), FEWEST)
    return size if size < t else 0


def _bytes_of_one(queries: Queries, keys: Keys) -> int:
    """What the scores of one example take."""
    _, t, n, _ = queries.q.shape
    return n * t * keys.k.shape[1] * wide(queries.q.dtype).itemsize


def _examples_in_turn(queries: Queries, keys: Keys, count: int, whole: Whole) -> jax.Array:
    """So many examples at a time, far apart in the batch: it may be cut over devices."""
    shape, (given, structure) = queries.q.shape, jax.tree.flatten((queries, keys))
    own = [x.shape[0] == shape[0] for x in given]  # not the same for all examples

    def cut(x):
        return jnp.swapaxes(x.reshape(count, -1, *x.shape[1:]), 0, 1)

    def one(parts):
        left = iter(parts)
        leaves = [next(left) if mine else x for x, mine in zip(given, own, strict=True)]
        return whole(*structure.unflatten(leaves))

    parts = [cut(x) for x, mine in zip(given, own, strict=True) if mine]
    y = jax.lax.map(jax.checkpoint(one, prevent_cse=False), parts)
    return jnp.swapaxes(y, 0, 1).reshape(shape)
