"""Rotary positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.core.dtypes import wide
from fnn.core.shapes import of_rank


def rotated(x: jax.Array, base: float, at: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + D/2) of [..., T, N, D] by the positions [T] or [..., T]."""
    half, dtype = x.shape[-1] // 2, wide(x.dtype)
    positions = at.astype(dtype)[..., None, None]
    speed = jnp.asarray(base, dtype) ** (-jnp.arange(half).astype(dtype) / half)
    angles = of_rank(positions * of_rank(speed, positions.ndim), x.ndim)  # [..., T, 1, D/2]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = x[..., :half].astype(dtype), x[..., half:].astype(dtype)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
