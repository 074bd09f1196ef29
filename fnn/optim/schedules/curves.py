"""The arithmetic of schedules: counts as ints, elapsed shares, and curves over them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import errors
from fnn.core.types import Dtype, Scalar
from fnn.optim.arithmetic import as_dtype

LAST = 2**31 - 1  # the largest count of an int32


def widest_float() -> Dtype:
    """float64 where it is enabled, else float32."""
    return jnp.result_type(float)


def real(value: Scalar) -> jax.Array:
    return as_dtype(value, widest_float())


def as_count(count: Scalar) -> jax.Array:
    array = isinstance(count, (jax.Array, np.ndarray, np.generic)) and count.dtype != np.bool_
    whole = isinstance(count, int) and not isinstance(count, bool) and abs(count) <= LAST
    if not (array or whole or isinstance(count, float)):
        mend = f"pass a number from 0 to {LAST}"
        raise errors.InputError("a count of updates", errors.show(count), mend)
    return jnp.asarray(count)


def as_one_kind(*numbers: Scalar) -> list[jax.Array]:
    """All as ints if all are, else as floats: float32 is not exact above 2^24."""
    arrays = [jnp.asarray(number) for number in numbers]
    whole = all(jnp.issubdtype(a.dtype, jnp.integer) for a in arrays)
    return [a.astype(jnp.result_type(int) if whole else widest_float()) for a in arrays]


def shares(count: Scalar, begin: Scalar, steps: Scalar) -> tuple[jax.Array, jax.Array]:
    """The share of the steps from begin that is left at count, and the share that has passed.

    Both in full relative precision, which 1 - the other would lose, and exact at the ends: XLA
    divides an array of counts by multiplying with 1 / steps, so n / n is not always 1.
    """
    count, begin, steps = as_one_kind(as_count(count), begin, steps)
    steps = jnp.maximum(steps, 0)
    passed = jnp.clip(count - begin, 0, steps)
    ended = count - begin >= steps
    whole = real(jnp.where(steps > 0, steps, 1))
    left = jnp.where((passed == 0) & ~ended, 1, real(steps - passed) / whole)
    return left, jnp.where(ended, 1, real(passed) / whole)


def line(count: Scalar, begin: Scalar, steps: Scalar, a: Scalar, b: Scalar) -> jax.Array:
    left, passed = shares(count, begin, steps)
    return real(a) * left + real(b) * passed


def wave(count: Scalar, begin: Scalar, steps: Scalar, exponent: Scalar = 1.0) -> jax.Array:
    """((1 + cos(pi passed)) / 2)^exponent = sin(pi left / 2)^(2 exponent), which falls to zero."""
    left, _ = shares(count, begin, steps)
    return bend(hill(left), exponent)


def hill(share: jax.Array) -> jax.Array:
    return jnp.sin(math.pi / 2 * share) ** 2


def mix(share: jax.Array, a: Scalar, b: Scalar) -> jax.Array:
    """From b at share 0 to a at share 1, both exactly."""
    return real(a) * share + real(b) * (1 - share)


def bend(share: jax.Array, exponent: Scalar) -> jax.Array:
    """share^exponent, exactly 1 at share 1, where XLA's float32 power is off by one unit."""
    return jnp.where(share == 1, share, raised(share, real(exponent)))


def raised(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """base^exponent for base >= 0, with 0^0 = 1 and derivatives zero at base 0."""
    positive = base > 0
    return jnp.where(positive, jnp.where(positive, base, 1) ** exponent, real(exponent == 0))


def switch(count: Scalar, boundary: Scalar, before: jax.Array, after: jax.Array) -> jax.Array:
    count, boundary = as_one_kind(as_count(count), boundary)
    return jnp.where(count < boundary, before, after)


def curve(count: Scalar, values: Sequence, boundaries: Sequence, kind: str) -> jax.Array:
    """From each value to the next between the boundaries; the first starts at 0."""
    begins = [0, *boundaries]
    value = jnp.broadcast_to(real(values[0]), jnp.shape(as_count(count)))
    for i, end in enumerate(boundaries):
        end, begin = as_one_kind(end, begins[i])
        parts = shares(count, begin, end - begin)
        left, passed = parts if kind == "linear" else map(hill, parts)
        between = real(values[i]) * left + real(values[i + 1]) * passed
        value = switch(count, begin, value, between)
    return value
