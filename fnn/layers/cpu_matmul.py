"""The product of a last axis with a matrix, over one axis of rows.

For the gradient by the matrix, XLA's CPU compiler (jaxlib 0.10 to 0.12) sums over one axis at once
and over several by a transposed copy of what it sums: a dense layer over [B, T, C] takes up to half
as long again as over [B T, C]. Elsewhere, and where there are several devices, the axes stay apart:
each may be cut over them. To be deleted when the row `apart` of benchmarks/tasks/matmul.py is as
fast as `fnn`.
"""

import math

import jax
import jax.numpy as jnp

SMALL = 1 << 16  # values; the copy of fewer takes no time, and one form less is traced


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel: [..., C], [C, O] -> [..., O]."""
    *lead, channels = jnp.shape(x)
    known = all(isinstance(size, int) for size in lead)  # not so where an export leaves it open
    small = known and math.prod(lead) * max(channels, kernel.shape[-1]) < SMALL
    if len(lead) < 2 or small or jax.device_count() > 1:
        return x @ kernel
    return jax.lax.platform_dependent(x, kernel, cpu=_by_rows, default=jnp.matmul)


def _by_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    *lead, channels = x.shape
    y = x.reshape(math.prod(lead), channels) @ kernel
    return y.reshape(*lead, kernel.shape[-1])
