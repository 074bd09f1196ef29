"""Arithmetic that optimizers share: right for zeros, in float32 or wider, and differentiable."""

from __future__ import annotations

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from fnn.dtypes import widest


def as_dtype(value: Any, dtype: Any) -> jax.Array:
    """A hyperparameter (a number, an array or a tracer) in the dtype of the arithmetic."""
    return jnp.asarray(value).astype(dtype)


def increment(count: jax.Array) -> jax.Array:
    """count + 1, staying at the largest int instead of overflowing."""
    return jnp.where(count < jnp.iinfo(count.dtype).max, count + 1, count)


def average(decay: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    """decay old + (1 - decay) new, an exponential moving average."""
    weight = as_dtype(decay, old.dtype)
    return weight * old + (1 - weight) * new


def correction(decay: Any, t: jax.Array) -> jax.Array:
    """1 / (1 - decay^t), what makes an average of t values out of one that started at zero.

    A factor, so that every element is multiplied and not divided. For decay near 1 the difference
    would lose what makes it up: 1 - 0.999 has three digits less.
    """
    decay = as_dtype(decay, t.dtype)
    log = jnp.log1p(jnp.where(decay > 0, decay, 1) - 1)
    later = jnp.where(decay > 0, -jnp.expm1(t * log), 1)
    return 1 / jnp.where(t == 1, 1 - decay, later)  # exact at first, and for decay 0


@jax.custom_jvp
def sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivative zero at zero instead of infinity."""
    return jnp.sqrt(x)


@sqrt.defjvp
def _sqrt_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    root = sqrt(x)
    return root, divide(jnp.full_like(root, 0.5), root) * dx


@jax.custom_jvp
def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and zero where b is zero: nothing moves where nothing was measured."""
    return jnp.where(b == 0, 0, a / b)


@divide.defjvp
def _divide_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (a, b), (da, db) = primals, tangents
    quotient, inverse = divide(a, b), divide(jnp.ones_like(b), b)
    return quotient, inverse * da - quotient * inverse * db


def over_root(m: jax.Array, v: jax.Array, eps: Any, eps_root: Any = 0.0) -> jax.Array:
    """m / (sqrt(v + eps_root) + eps), and zero where that divides by zero."""
    return divide(m, sqrt(v + as_dtype(eps_root, v.dtype)) + as_dtype(eps, v.dtype))


def at_most(most: jax.Array, length: jax.Array) -> jax.Array:
    """What to multiply by, for a length of at most `most`."""
    return jnp.where(length > most, divide(most, length), 1)


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product of matrices in full precision, which accelerators give only if asked."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def tree_dtype(tree: Any) -> Any:
    """The widest dtype of the leaves, at least float32: of numbers that sum over all of them."""
    return reduce(widest, map(jnp.result_type, jax.tree.leaves(tree)), jnp.dtype(jnp.float32))


def norm(*arrays: jax.Array) -> jax.Array:
    """The root of the sum of all squares, in float32 or wider, with derivative zero at zero.

    Values are divided by the largest first, so that no square over- or underflows.
    """
    dtype = tree_dtype(arrays)
    arrays = tuple(a.astype(dtype) for a in arrays if a.size)
    if not arrays:
        return jnp.zeros((), dtype)
    largest = jax.lax.stop_gradient(reduce(jnp.maximum, (jnp.max(jnp.abs(a)) for a in arrays)))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * sqrt(sum((jnp.sum(jnp.square(a / unit)) for a in arrays), jnp.zeros((), dtype)))


def norm_over(x: jax.Array, axes: int | tuple[int, ...]) -> jax.Array:
    """The norm over some axes, which stay with size 1, in the dtype of x; else as `norm`."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axes, keepdims=True, initial=0))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * sqrt(jnp.sum(jnp.square(x / unit), axes, keepdims=True))


# --- narrow floats


def spacing(x: jax.Array, dtype: Any) -> jax.Array:
    """The distance of the numbers of a narrow dtype around x, which is float32 or wider."""
    info = jnp.finfo(dtype)
    _, exponent = jnp.frexp(x)
    lowest = max(info.minexp - info.nmant, jnp.finfo(x.dtype).minexp)
    return jnp.ldexp(jnp.ones_like(x), jnp.maximum(exponent - 1 - info.nmant, lowest))


def rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """x rounded to a narrow dtype, in its own, with derivative one.

    A conversion there and back would not do: XLA leaves such pairs out.
    """
    value = jax.lax.stop_gradient(x)
    step = spacing(value, dtype)
    off = jnp.round(value / step) * step - value
    return x + jnp.where(jnp.isfinite(off), off, 0)
