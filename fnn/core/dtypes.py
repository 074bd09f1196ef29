"""Floating dtypes, and the wider ones to accumulate in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core.types import Dtype


def is_floating(x: Any) -> bool:
    """Whether an array, a struct or a declaration has a floating dtype.

    >>> is_floating(jnp.ones(2)), is_floating(jnp.arange(2))
    (True, False)
    """
    return jnp.issubdtype(x.dtype, jnp.floating)


def is_key(x: Any) -> bool:
    """Whether x is an array of typed random keys, or stands for one.

    >>> is_key(jax.random.key(0)), is_key(jnp.ones(2)), is_key(1.0)
    (True, False, False)
    """
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def wide(dtype: Dtype) -> np.dtype:
    """float32 for narrower floats, else `dtype`: for sums, statistics and moments.

    >>> wide(jnp.bfloat16), wide(jnp.float32)
    (dtype('float32'), dtype('float32'))
    """
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def widened(a: Any) -> jax.Array:
    """An array, in float32 if its floats are narrower.

    >>> widened(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    a = jnp.asarray(a)
    return a.astype(wide(a.dtype))


def widest(a: Dtype, b: Dtype) -> np.dtype:
    """The wider of two float dtypes; float32 for two narrow ones that differ.

    Complex if one of them is.
    """
    if jnp.dtype(a) == jnp.dtype(b):
        return jnp.dtype(a)
    most = max(map(real_part, (wide(a), wide(b))), key=lambda dtype: jnp.finfo(dtype).bits)
    return complex_of(most) if is_complex(a) or is_complex(b) else most


def is_complex(dtype: Dtype) -> bool:
    """Whether a dtype is complex.

    >>> is_complex(jnp.complex64), is_complex(jnp.float32)
    (True, False)
    """
    return jnp.issubdtype(dtype, jnp.complexfloating)


def real_part(dtype: Dtype) -> np.dtype:
    """The dtype of the parts of a complex dtype; a float dtype itself.

    >>> real_part(jnp.complex64), real_part(jnp.bfloat16)
    (dtype('float32'), dtype(bfloat16))
    """
    return jnp.dtype(jnp.finfo(dtype).dtype)


def complex_of(dtype: Dtype) -> np.dtype:
    """The complex dtype whose parts have this float dtype, of 32 or 64 bits."""
    return jnp.dtype({32: jnp.complex64, 64: jnp.complex128}[jnp.finfo(dtype).bits])
