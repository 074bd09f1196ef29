"""Norms of arrays, even beyond the largest float, and quotients by them.

XLA computes a quotient by a broadcast value as a product with the reciprocal, and on CPU it flushes
subnormal numbers to zero, so 1e38 / 1e38 can be 0; squares overflow much earlier. Here everything
is scaled by powers of two, which round nothing, chosen so that their inverses are normal numbers
too. Subnormal numbers count as zero, as they do for XLA on CPU.
"""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core.dtypes import real_part, widest
from fnn.core.static import inlined
from fnn.core.types import Dtype, Scalar


@jax.custom_jvp
def sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivative zero at zero instead of infinity."""
    return jnp.sqrt(x)


@sqrt.defjvp
def _sqrt_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    root = sqrt(x)
    return root, divide(jnp.full_like(root, 0.5), root) * dx


@inlined
def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b for a real b, and zero where b is zero.

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
    """A factor that brings a large b to where its reciprocal is a normal number."""
    half = jnp.asarray(2.0 ** (jnp.finfo(b.dtype).maxexp // 2), b.dtype)
    return jnp.where(jnp.abs(b) > half, 1 / half, jnp.ones_like(half))


# --- powers of two


@inlined
def exponent(x: jax.Array) -> jax.Array:
    """floor(log2 |x|), within the range where 2^e and 2^-e are normal; 0 for 0, inf and NaN."""
    info = jnp.finfo(x.dtype)  # from the bits: `jnp.frexp` costs many times a product
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), _ints(info))
    field = (bits >> info.nmant).astype(jnp.int32) & (2**info.nexp - 1)
    e = jnp.minimum(field + (info.minexp - 1), -info.minexp)
    return jnp.where((field == 0) | (field == 2**info.nexp - 1), 0, e)


def modulus(x: jax.Array) -> jax.Array:
    """x, or |x| if x is complex: real, with the same squared norm."""
    return jnp.abs(x) if jnp.iscomplexobj(x) else x


@inlined
def times_power(x: jax.Array, e: jax.Array | int) -> jax.Array:
    """x 2^e, in two halves, so that neither power is out of range."""
    first, second = (_power(half, x.dtype).astype(x.dtype) for half in (e >> 1, e - (e >> 1)))
    return x * first * second


def _power(e: jax.Array | int, dtype: Dtype) -> jax.Array:
    """2^e, or the nearest normal power of two whose inverse is normal."""
    dtype, info = real_part(dtype), jnp.finfo(dtype)
    field = jnp.clip(e, info.minexp, -info.minexp) + (1 - info.minexp)
    return jax.lax.bitcast_convert_type(field.astype(_ints(info)) << info.nmant, dtype)


def _ints(info: Any) -> Any:
    return jnp.dtype(f"int{info.bits}")


# --- lengths


class Length(NamedTuple):
    """The number root * 2^exponent, at least 0, possibly beyond the range of its dtype.

    Roots are near 2^room, or zero: large enough that a derivative with respect to one, a sum over
    all that is scaled, stays in range for arrays near the largest float.
    """

    root: jax.Array
    exponent: jax.Array


@partial(inlined, static_argnames="dtype")
def as_length(x: Scalar, dtype: Dtype = None) -> Length:
    """The Length of a number at least 0, or of an array of such numbers."""
    x = jnp.asarray(x) if dtype is None else jnp.asarray(x).astype(dtype)
    e = exponent(x) - _room(x.dtype)
    return Length(times_power(x, -e), e)


def _room(dtype: Dtype) -> int:
    most = jnp.finfo(dtype).maxexp
    return most // 5 if most > 100 else 0  # none in float16


def value(length: Length) -> jax.Array:
    """The length as a float; infinite if out of range."""
    return times_power(*length)


@inlined
def length_of(*arrays: jax.Array) -> Length:
    """The root of the sum of all squares, in float32 or wider; its derivative at zero is zero."""
    dtype = reduce(widest, (real_part(a.dtype) for a in arrays), jnp.dtype(jnp.float32))
    arrays = tuple(modulus(a).astype(dtype) for a in arrays if a.size)
    if not arrays:
        return as_length(jnp.zeros((), dtype))
    e = exponent(reduce(jnp.maximum, (jnp.max(jnp.abs(a)) for a in arrays))) - _room(dtype)
    total = sum((jnp.sum(jnp.square(times_power(a, -e))) for a in arrays), jnp.zeros((), dtype))
    return Length(sqrt(total), e)


def length_over(x: jax.Array, axes: int | tuple[int, ...]) -> Length:
    """`length_of` over some axes, kept with size 1, in the dtype of x or of its parts."""
    x = modulus(x)
    e = exponent(jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)) - _room(x.dtype)
    return Length(sqrt(jnp.sum(jnp.square(times_power(x, -e)), axes, keepdims=True)), e)


@inlined
def add(a: Length, b: Length) -> Length:
    e = jnp.maximum(a.exponent, b.exponent)
    return Length(_in_units(a, e) + _in_units(b, e), e)


def times(factor: Scalar, length: Length) -> Length:
    """A length times a number at least 0, not far above 1."""
    return Length(jnp.asarray(factor).astype(length.root.dtype) * length.root, length.exponent)


def product(a: Length, b: Length) -> Length:
    return Length(a.root * b.root, a.exponent + b.exponent)


@inlined
def at_least(length: Length, least: Scalar) -> Length:
    """The maximum of a length and a number."""
    other = as_length(least, length.root.dtype)
    short = exceeds(other, length)
    return Length(*(jnp.where(short, a, b) for a, b in zip(other, length, strict=True)))


@inlined
def exceeds(a: Length, b: Length) -> jax.Array:
    e = jnp.maximum(a.exponent, b.exponent)
    return _in_units(a, e) > _in_units(b, e)


def _in_units(a: Length, e: jax.Array) -> jax.Array:
    return times_power(a.root, a.exponent - e)


@inlined
def scaled(x: jax.Array, a: Length, b: Length, where: Any = True) -> jax.Array:
    """x a / b, without intermediate overflow; zero where b is zero.

    - `where`: elsewhere, x unchanged.
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


@inlined
def shortened(x: jax.Array, most: Length, length: Length) -> jax.Array:
    """x, which has this length or is part of what has it, shortened to at most `most`.

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
