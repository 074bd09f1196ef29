"""Where a query may attend to a key, and rows that nobody reads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.shapes import blocks_of, of_rank

ROWS = 512  # of a mask that are read at once


def checked(mask: Any, x: Any, s: int, heads: int) -> jax.Array:
    """A user's mask for x [..., T, C] and s keys, as [..., heads or 1, T or 1, S or 1]."""
    checks.rank(mask, 1, "[..., T, S]", "mask")
    if mask.dtype != bool:
        raise errors.DtypeError(
            "mask of booleans", f"mask {errors.show(mask)}", "cast it: mask.astype(bool)"
        )
    mend = "True where t may attend to s, with an axis of 1 for what is the same for all"
    if mask.ndim < x.ndim:
        mend = "for a mask of keys, mask[..., None, :]; for one [T, S] for all, mask[None]"
    return _of_scores(mask, x, s, heads, "mask", mend)


def checked_bias(bias: Any, x: Any, s: int, heads: int) -> jax.Array:
    """A user's bias for x [..., T, C] and s keys, as [..., heads or 1, T or 1, S or 1]."""
    checks.array(bias, 1, "[..., T, S]", "bias")
    mend = "what is added to the scores, with an axis of 1 for what is the same for all"
    return _of_scores(bias, x, s, heads, "bias", mend)


def _of_scores(a: Any, x: Any, s: int, heads: int, name: str, mend: str) -> jax.Array:
    *lead, t, _ = x.shape
    one, each = (*lead, t, s), (*lead, heads, t, s)  # for all heads, for each
    full = {len(one): one, len(each): each}.get(a.ndim, ())
    if not full or any(i not in (1, j) for i, j in zip(a.shape, full, strict=True)):
        raise errors.ShapeError(
            f"{name} [..., T, S], {one}, or [..., heads, T, S], {each}, each size or 1",
            f"{name} {a.shape}",
            mend,
        )
    return a if full is each else a[..., None, :, :]


def checked_segments(segments: Any, x: Any) -> jax.Array:
    """A user's segments [..., T] for x [..., T, C]."""
    checks.rank(segments, 1, "[..., T]", "segments")
    if not jnp.issubdtype(segments.dtype, jnp.integer):
        raise errors.DtypeError(
            "segments of integers",
            f"segments {errors.show(segments)}",
            "number them from 1, with 0 for padding; for a mask of padding, real.astype(int)",
        )
    if segments.shape != x.shape[:-1]:
        raise errors.ShapeError(
            f"segments [..., T], {x.shape[:-1]}", f"segments {segments.shape}", "one for each t"
        )
    return segments


def near(t: jax.Array, s: jax.Array, causal: bool, window: int | None) -> jax.Array | None:
    """Where a query at t sees a key at s, by positions of shapes that broadcast; None is all."""
    if window is None:
        return s <= t if causal else None
    return (t - window < s) & (s <= t if causal else s < t + window)


def same_segment(t: jax.Array, s: jax.Array) -> jax.Array:
    """Where two segments of shapes that broadcast are the same, and no padding."""
    return (t == s) & (t > 0)


def without_hidden(
    x: jax.Array,
    mask: jax.Array,
    causal: bool,
    window: int | None = None,
    segments: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [..., T, C] without rows that are not finite and that no t attends to; which of these
    attend to anything; and which rows any t attends to.

    The second are NaN in the output. Passed through the layers, such a row would turn the gradients
    of their params to NaN even if its output does not count, since 0 NaN is NaN.
    """
    read, reads = _read_and_reading(mask, x.shape[-2], causal, window, segments)
    hidden = ~read & ~jnp.all(jnp.isfinite(x), axis=-1)  # [..., T]
    return in_rows(~hidden, x, 0), hidden & reads, read


def _read_and_reading(
    mask: jax.Array, t: int, causal: bool, window: int | None, segments: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Whether any t attends to s, [..., S or 1], and whether t attends to any s, [..., T or 1].

    A mask of keys alone, or of queries alone, is never made [T, S].
    """
    seen = jnp.any(mask, axis=-3)  # [..., T or 1, S or 1]
    if not causal and window is None and segments is None:
        return jnp.any(seen, axis=-2), jnp.any(seen, axis=-1)
    back = t if window is None else window - 1
    ahead = 0 if causal else back
    if segments is None and seen.shape[-2] == 1:  # each s is seen by itself
        keys = jnp.broadcast_to(seen[..., 0, :], (*seen.shape[:-2], t))
        return keys, any_within(keys, back, ahead)
    if segments is None and seen.shape[-1] == 1:
        queries = seen[..., 0]
        return any_within(queries, ahead, back), queries
    return _by_rows(seen, t, causal, window, segments)


def any_within(x: jax.Array, back: int, ahead: int) -> jax.Array:
    """Whether any of x[t - back], ..., x[t + ahead] is True: [..., T]."""
    n = x.shape[-1]
    total = jnp.cumsum(x, axis=-1, dtype=jnp.int32)
    total = jnp.pad(total, [(0, 0)] * (x.ndim - 1) + [(1, 0)])
    at = np.arange(n)
    first, last = np.maximum(at - back, 0), np.minimum(at + ahead, n - 1)
    return jnp.take(total, last + 1, axis=-1) > jnp.take(total, first, axis=-1)


def _by_rows(
    seen: jax.Array, t: int, causal: bool, window: int | None, segments: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """`_read_and_reading` of [..., T or 1, S or 1], block after block of queries."""
    places = jnp.arange(t, dtype=jnp.int32)
    each, rank = seen.shape[-2] > 1, seen.ndim

    def one(block):
        at, own, segment = block
        rows = seen if own is None else own
        inside = near(at[:, None], places[None, :], causal, window)
        rows = rows if inside is None else rows & of_rank(inside, rank)
        if segments is not None:
            rows = rows & same_segment(segment[..., :, None], segments[..., None, :])
        return jnp.any(rows, axis=-2), jnp.any(rows, axis=-1)

    if t <= ROWS:
        return one((places, None, segments))
    blocks = (
        blocks_of(places, ROWS),
        blocks_of(seen, ROWS, rank - 2) if each else None,
        None if segments is None else blocks_of(segments, ROWS, rank - 2),
    )
    read, reads = jax.lax.map(one, blocks)  # [blocks, ..., S], [blocks, ..., ROWS]
    reads = jnp.moveaxis(reads, 0, -2)
    return jnp.any(read, axis=0), reads.reshape(*reads.shape[:-2], -1)[..., :t]


def in_rows(rows: jax.Array, x: jax.Array, other: float) -> jax.Array:
    """x [..., T, C] in the rows [..., T] that are True, else a number."""
    return jnp.where(rows[..., None], x, jnp.asarray(other, x.dtype))
