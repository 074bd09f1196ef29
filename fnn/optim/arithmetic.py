"""Arithmetic that optimizers share: right for zeros, in float32 or wider, and differentiable."""

from __future__ import annotations

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core.dtypes import real_part, widest
from fnn.core.lengths import divide, length_of, sqrt, value
from fnn.core.types import Dtype, Scalar, Tree


def as_dtype(value: Any, dtype: Dtype) -> jax.Array:
    """A hyperparameter (a number, an array or a tracer) in the dtype of the arithmetic."""
    return jnp.asarray(value).astype(dtype)


def increment(count: jax.Array) -> jax.Array:
    """count + 1, staying at the largest int instead of overflowing."""
    return jnp.where(count < jnp.iinfo(count.dtype).max, count + 1, count)


def average(decay: Scalar, old: jax.Array, new: jax.Array) -> jax.Array:
    """decay old + (1 - decay) new, an exponential moving average."""
    weight = as_dtype(decay, old.dtype)
    return weight * old + (1 - weight) * new


def correction(decay: Scalar, t: jax.Array) -> jax.Array:
    """1 / (1 - decay^t), which corrects an average of t values for its start at zero.

    A factor, so that elements are multiplied, not divided. By logarithms, since for decay near 1
    the difference 1 - decay^t cancels: 1 - 0.999 has three digits fewer.
    """
    decay = as_dtype(decay, t.dtype)
    log = jnp.log1p(jnp.where(decay > 0, decay, 1) - 1)
    later = jnp.where(decay > 0, -jnp.expm1(t * log), 1)
    return 1 / jnp.where(t == 1, 1 - decay, later)  # exact at first, and for decay 0


def corrected(moment: jax.Array, decay: Scalar, t: jax.Array) -> jax.Array:
    """moment / (1 - decay^t), see `correction`; t is real where the moment is complex."""
    return moment * as_dtype(correction(decay, t), moment.dtype)


def square(x: jax.Array) -> jax.Array:
    """x^2, or |x|^2 for a complex x: always real."""
    return x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x**2


def sizes_like(p: jax.Array) -> jax.Array:
    """Real zeros shaped like p, whether p is complex or not."""
    return jnp.zeros_like(p, real_part(p.dtype))


def over_root(m: jax.Array, v: jax.Array, eps: Scalar, eps_root: Scalar = 0.0) -> jax.Array:
    """m / (sqrt(v + eps_root) + eps), and zero where that divides by zero."""
    return divide(m, sqrt(v + as_dtype(eps_root, v.dtype)) + as_dtype(eps, v.dtype))


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """The matrix product in full precision, which accelerators give only on request."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def tree_dtype(tree: Tree) -> Any:
    """The widest real dtype of the leaves, at least float32: for sums over all of them."""
    dtypes = (real_part(jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree))
    return reduce(widest, dtypes, jnp.dtype(jnp.float32))


def norm(*arrays: jax.Array) -> jax.Array:
    """The root of the sum of all squares, in float32 or wider, with derivative zero at zero.

    No square over- or underflows. Divisions by it use `fnn.core.lengths`, which has a wider range.
    """
    return value(length_of(*arrays))


# --- narrow floats


def spacing(x: jax.Array, dtype: Dtype) -> jax.Array:
    """The spacing of a narrow dtype's numbers around x, which is float32 or wider."""
    info = jnp.finfo(dtype)
    _, exponent = jnp.frexp(x)
    lowest = max(info.minexp - info.nmant, jnp.finfo(x.dtype).minexp)
    return jnp.ldexp(jnp.ones_like(x), jnp.maximum(exponent - 1 - info.nmant, lowest))


def rounded(x: jax.Array, dtype: Dtype) -> jax.Array:
    """x rounded to a narrow dtype but kept in its own, with derivative one.

    Converting there and back would not do: XLA removes such pairs.
    """
    value = jax.lax.stop_gradient(x)
    step = spacing(value, dtype)
    off = jnp.round(value / step) * step - value
    return x + jnp.where(jnp.isfinite(off), off, 0)
