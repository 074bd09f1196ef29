"""Lengths of arrays, which may be larger than any float, and what is divided by them.

XLA takes a quotient by what it broadcasts as a product with the reciprocal, and on CPU it flushes
numbers below the least normal one to zero, so 1e38 / 1e38 can be 0; a square leaves the floats much
earlier. Here all is scaled by powers of two, which round nothing, kept so that their inverses are
normal numbers as well. What is below the least normal number counts as zero, as for XLA on CPU.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core.dtypes import real_part, widest


@jax.custom_jvp
def sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivative zero at zero instead of infinity."""
    return jnp.sqrt(x)


@sqrt.defjvp
def _sqrt_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    root = sqrt(x)
    return root, divide(jnp.full_like(root, 0.5), root) * dx


def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b for a real b, and zero where b is zero: nothing moves where nothing was measured.

    >>> print(divide(jnp.array([3e38, 1.0, 2.0]), jnp.array([3e38, 0.0, 4.0])))
    [1.  0.  0.5]
    """
    if jnp.iscomplexobj(a):
        return jax.lax.complex(_divide(a.real, b), _divide(a.imag, b))
    return _divide(a, b)


@jax.custom_jvp
def _divide(a: jax.Array, b: jax.Array) -> jax.Array:
    less = _less(b)
    return jnp.where(b == 0, 0, (a * less) / (b * less))


@_divide.defjvp
def _divide_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (a, b), (da, db) = primals, tangents
    less = _less(b)
    quotient, inverse = _divide(a, b), _divide(jnp.ones_like(b), b * less)
    return quotient, inverse * (less * (da - quotient * db))


def _less(b: jax.Array) -> jax.Array:
    """What makes a large b one whose reciprocal is a normal number."""
    half = jnp.asarray(2.0 ** (jnp.finfo(b.dtype).maxexp // 2), b.dtype)
    return jnp.where(jnp.abs(b) > half, 1 / half, jnp.ones_like(half))


# --- powers of two


def exponent(x: jax.Array) -> jax.Array:
    """floor(log2 |x|), kept where 2^e and 2^-e are both normal; 0 for 0, infinity and NaN."""
    info = jnp.finfo(x.dtype)  # read off the bits, since `jnp.frexp` costs many times a product
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), _ints(info))
    field = (bits >> info.nmant).astype(jnp.int32) & (2**info.nexp - 1)
    e = jnp.minimum(field + (info.minexp - 1), -info.minexp)
    return jnp.where((field == 0) | (field == 2**info.nexp - 1), 0, e)


def modulus(x: jax.Array) -> jax.Array:
    """x itself, or |x| of a complex x: what has the same squares, and is real."""
    return jnp.abs(x) if jnp.iscomplexobj(x) else x


def times_power(x: jax.Array, e: Any) -> jax.Array:
    """x 2^e, by halves, so that neither power is out of range: nothing is lost on the way."""
    first, second = (_power(half, x.dtype).astype(x.dtype) for half in (e >> 1, e - (e >> 1)))
    return x * first * second


def _power(e: Any, dtype: Any) -> jax.Array:
    """2^e, or the nearest normal number whose inverse is normal."""
    dtype, info = real_part(dtype), jnp.finfo(dtype)
    field = jnp.clip(e, info.minexp, -info.minexp) + (1 - info.minexp)
    return jax.lax.bitcast_convert_type(field.astype(_ints(info)) << info.nmant, dtype)


def _ints(info: Any) -> Any:
    return jnp.dtype(f"int{info.bits}")


# --- lengths


class Length(NamedTuple):
    """The number root 2^exponent, at least 0: it may be out of the range of its dtype.

    Roots are near 2^room, or zero: so large that a derivative by them, which sums over all that is
    scaled, stays in range where that is near the largest float.
    """

    root: jax.Array
    exponent: jax.Array


def as_length(x: Any, dtype: Any = None) -> Length:
    """A number, or an array of them, at least 0."""
    x = jnp.asarray(x) if dtype is None else jnp.asarray(x).astype(dtype)
    e = exponent(x) - _room(x.dtype)
    return Length(times_power(x, -e), e)


def _room(dtype: Any) -> int:
    most = jnp.finfo(dtype).maxexp
    return most // 5 if most > 100 else 0  # none in float16


def value(length: Length) -> jax.Array:
    """As a float: infinite where it is out of range."""
    return times_power(*length)


def length_of(*arrays: jax.Array) -> Length:
    """The root of the sum of all squares, in float32 or wider, with derivative zero at zero."""
    dtype = reduce(widest, (real_part(a.dtype) for a in arrays), jnp.dtype(jnp.float32))
    arrays = tuple(modulus(a).astype(dtype) for a in arrays if a.size)
    if not arrays:
        return as_length(jnp.zeros((), dtype))
    e = exponent(reduce(jnp.maximum, (jnp.max(jnp.abs(a)) for a in arrays))) - _room(dtype)
    total = sum((jnp.sum(jnp.square(times_power(a, -e))) for a in arrays), jnp.zeros((), dtype))
    return Length(sqrt(total), e)


def length_over(x: jax.Array, axes: int | tuple[int, ...]) -> Length:
    """That over some axes, which stay with size 1, in the dtype of x, or of its parts."""
    x = modulus(x)
    e = exponent(jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)) - _room(x.dtype)
    return Length(sqrt(jnp.sum(jnp.square(times_power(x, -e)), axes, keepdims=True)), e)


def add(a: Length, b: Length) -> Length:
    e = jnp.maximum(a.exponent, b.exponent)
    return Length(_in_units(a, e) + _in_units(b, e), e)


def times(factor: Any, length: Length) -> Length:
    """A length times a number, at least 0, that is near 1 or a share."""
    return Length(jnp.asarray(factor).astype(length.root.dtype) * length.root, length.exponent)


def product(a: Length, b: Length) -> Length:
    return Length(a.root * b.root, a.exponent + b.exponent)


def at_least(length: Length, least: Any) -> Length:
    """The longer of a length and a number."""
    other = as_length(least, length.root.dtype)
    short = exceeds(other, length)
    return Length(*(jnp.where(short, a, b) for a, b in zip(other, length, strict=True)))


def exceeds(a: Length, b: Length) -> jax.Array:
    e = jnp.maximum(a.exponent, b.exponent)
    return _in_units(a, e) > _in_units(b, e)


def _in_units(a: Length, e: jax.Array) -> jax.Array:
    return times_power(a.root, a.exponent - e)


def scaled(x: jax.Array, a: Length, b: Length, where: Any = True) -> jax.Array:
    """x a / b, which is out of range only if the result is; zero where b is zero.

    - `where`: elsewhere, x as it is.
    """
    (top, up), (bottom, down) = map(as_length, (a.root, b.root))
    e = 1 + up + a.exponent - down - b.exponent
    room = jnp.where(up + a.exponent > 0, _room(top.dtype), 0)  # as the roots have
    dtype = real_part(x.dtype)
    ratio = divide(times_power(top, room), 2 * bottom).astype(dtype)  # below 2^room
    part = e >> 2  # by quarters, each in range and between x and the result
    for by, factor in ((part - room, 1), (part, ratio), (part, 1), (e - 3 * part, 1)):
        x = x * _once(jnp.where(where, _power(by, dtype) * factor, 1)).astype(x.dtype)
    return x


def _once(factor: jax.Array) -> jax.Array:
    """The factor as it is, computed before it is broadcast, once for each of its own elements.

    XLA on CPU computes anew, for every element of the result, what is broadcast: all that looks
    cheap to it, which a quotient does not. (jaxlib 0.10 to 0.12, where `optimization_barrier` does
    not help; `adaptive_grad_clip` of 2048 x 2048 values took 1.6 times as long.)
    """
    return factor / jnp.where(factor == 0, 2, 1).astype(factor.dtype)


def shortened(x: jax.Array, most: Length, length: Length) -> jax.Array:
    """x, of this length or part of what has it, where it is at most `most`; else x most / length.

    >>> x = jnp.array([3e38, -3e38])
    >>> print(shortened(x, as_length(1.0), length_of(x)))
    [ 0.70710677 -0.70710677]
    """
    above = exceeds(length, most)
    one = as_length(jnp.ones((), length.root.dtype))
    most, length = (
        Length(*(jnp.where(above, a, b) for a, b in zip(of, one, strict=True)))
        for of in (most, length)
    )
    return scaled(x, most, length, where=above)
