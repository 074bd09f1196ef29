"""Where a query may attend to a key, and rows that nobody reads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.shapes import of_rank


def checked(mask: Any, x: Any, s: int, heads: int) -> jax.Array:
    """A user's mask for x [..., T, C] and s keys, as [..., heads or 1, T or 1, S or 1]."""
    *lead, t, _ = x.shape
    checks.rank(mask, 1, "[..., T, S]", "mask")
    if mask.dtype != bool:
        raise errors.DtypeError(
            "mask of booleans", f"mask {errors.show(mask)}", "cast it: mask.astype(bool)"
        )
    one, each = (*lead, t, s), (*lead, heads, t, s)  # for all heads, for each
    full = {len(one): one, len(each): each}.get(mask.ndim, ())
    if not full or any(a not in (1, b) for a, b in zip(mask.shape, full, strict=True)):
        mend = "True where t may attend to s, with an axis of 1 for what is the same for all"
        if mask.ndim < len(one):
            mend = "for a mask of keys, mask[..., None, :]; for one [T, S] for all, mask[None]"
        raise errors.ShapeError(
            f"mask [..., T, S], {one}, or [..., heads, T, S], {each}, each size or 1",
            f"mask {mask.shape}",
            mend,
        )
    return mask if full is each else mask[..., None, :, :]


def past(t: jax.Array, s: jax.Array, rank: int) -> jax.Array:
    """Where s <= t, for positions [T] and [S]: [..., 1, T, S]."""
    return of_rank(s[None, :] <= t[:, None], rank)


def and_past(mask: jax.Array, t: int) -> jax.Array:
    """A mask of t queries and as many keys, where also s <= t."""
    places = jnp.arange(t, dtype=jnp.int32)
    return mask & past(places, places, mask.ndim)


def without_hidden(x: jax.Array, mask: jax.Array, causal: bool) -> tuple[jax.Array, jax.Array]:
    """x [..., T, C] without rows that are not finite and that no t attends to, and which of these
    attend to anything.

    Those are NaN in the output. Passed through the layers, such a row would turn the gradients of
    their params to NaN even if its output does not count, since 0 NaN is NaN.
    """
    read, reads = _read_and_reading(mask, x.shape[-2], causal)
    hidden = ~read & ~jnp.all(jnp.isfinite(x), axis=-1)  # [..., T]
    return in_rows(~hidden, x, 0), hidden & reads


def read_by_any(mask: jax.Array, t: int, causal: bool) -> jax.Array:
    """Whether any t, by any head, attends to s: [..., S]."""
    return _read_and_reading(mask, t, causal)[0]


def _read_and_reading(mask: jax.Array, t: int, causal: bool) -> tuple[jax.Array, jax.Array]:
    """Whether any t attends to s, [..., S or 1], and whether t attends to any s, [..., T or 1].

    A mask of keys alone, or of queries alone, is never made [T, S], whatever is in the past.
    """
    seen = jnp.any(mask, axis=-3)  # [..., T or 1, S or 1]
    if causal and seen.shape[-2] == 1:  # each s is in its own past
        keys = jnp.broadcast_to(seen[..., 0, :], (*seen.shape[:-2], t))
        return keys, jax.lax.cummax(keys.astype(jnp.int8), axis=keys.ndim - 1) > 0
    if causal and seen.shape[-1] == 1:
        queries = seen[..., 0]
        later = jax.lax.cummax(queries.astype(jnp.int8), axis=queries.ndim - 1, reverse=True)
        return later > 0, queries
    if causal:
        seen = and_past(seen, t)
    return jnp.any(seen, axis=-2), jnp.any(seen, axis=-1)


def in_rows(rows: jax.Array, x: jax.Array, other: float) -> jax.Array:
    """x [..., T, C] in the rows [..., T] that are True, else a number."""
    return jnp.where(rows[..., None], x, jnp.asarray(other, x.dtype))
