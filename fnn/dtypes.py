"""Floating dtypes, and what narrow ones are accumulated in."""

from typing import Any

import jax
import jax.numpy as jnp


def is_floating(x: Any) -> bool:
    """Whether an array, a struct or a declaration is of a floating dtype.

    >>> is_floating(jnp.ones(2)), is_floating(jnp.arange(2))
    (True, False)
    """
    return jnp.issubdtype(x.dtype, jnp.floating)


def wide(dtype: Any) -> Any:
    """float32 for floats narrower than it, else `dtype`: of sums, statistics and moments.

    >>> wide(jnp.bfloat16), wide(jnp.float32)
    (dtype('float32'), dtype('float32'))
    """
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def widened(a: Any) -> jax.Array:
    """An array in float32, if it is of narrower floats.

    >>> widened(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    a = jnp.asarray(a)
    return a.astype(wide(a.dtype))


def widest(a: Any, b: Any) -> Any:
    """Of two float dtypes, the one with more bits; float32 for two narrow ones that differ."""
    if jnp.dtype(a) == jnp.dtype(b):
        return jnp.dtype(a)
    return max(wide(a), wide(b), key=lambda dtype: jnp.finfo(dtype).bits)
