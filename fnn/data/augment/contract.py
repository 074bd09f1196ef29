"""What an augmentation is, a pure function `(key, x) -> x`, and what all of them check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.shapes import as_array, of_rank
from fnn.core.types import Dtype, Key, Scalar

Augmentation: TypeAlias = Callable[[Key, Any], Any]

IMAGE, SEQUENCE, ANY = "[..., H, W, C]", "[..., T, C]", "[...]"


def augmentation(
    name: str, layout: str, fn: Augmentation, *, floats: bool = False, mend: str = ""
) -> Augmentation:
    """`fn` as an augmentation of one name, which checks the key and the array.

    - `layout`: of the array, such as `IMAGE`.
    - `floats`: whether its dtype must be floating; `mend` is what else can be done.
    """
    axes = layout.count(",")

    def augment(key: Key, x: jax.Array) -> jax.Array:
        with errors.within(name):
            key, x = checks.typed_key(key), as_array(x, "x")
            checks.rank(x, axes, layout)
            if floats and not jnp.issubdtype(x.dtype, jnp.floating):
                cast = "cast: x.astype(jnp.float32) / 255, or the like"
                raise errors.DtypeError("x of a floating dtype", f"x {errors.show(x)}", cast + mend)
            return fn(key, x)

    augment.__name__ = augment.__qualname__ = name
    return augment


def check_function(name: str, fn: Any, of: str = "(key, x)") -> None:
    """A function, not a builder of one."""
    if errors.is_builder(fn):
        build = getattr(fn, "__name__", "")
        raise errors.InputError(f"{name} to be built", build, f"call it: {build}(...)")
    checks.function(name, fn, of)


def f32(value: Scalar) -> jax.Array:
    """A numeric option, in which it is computed with, whatever its dtype and the mode of JAX."""
    return jnp.asarray(value).astype(jnp.float32)


def draws(key: Key, n: int) -> list[jax.Array]:
    """n numbers in [0, 1), float32, by one call of the generator: an augmentation needs few."""
    return list(jax.random.uniform(key, (n,), jnp.float32))


def between(u: jax.Array, low: Scalar, high: Scalar) -> jax.Array:
    """A draw stretched from [0, 1) to [low, high); differentiable in both."""
    low, high = f32(low), f32(high)
    return low + (high - low) * u


def whole(u: jax.Array, low: Any, high: Any) -> jax.Array:
    """A draw as an int32 from low to high, both included."""
    low, high = (jnp.asarray(end).astype(jnp.int32) for end in (low, high))
    return low + jnp.floor(u * (high - low + 1).astype(jnp.float32)).astype(jnp.int32)


def along(values: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """Values [n] along an axis of x, counted from the last: with as many axes as x has."""
    return of_rank(values.reshape(-1, *(1,) * (-axis - 1)), x.ndim)


def check_range(low: Scalar, high: Scalar, of: str = "") -> None:
    """Two numbers in order, at least 0: options, or the ends of one; tracers pass."""
    names = (f"low{of}", f"high{of}")
    for name, value in zip(names, (low, high), strict=True):
        checks.number(name, value, 0.0, float("inf"), open_high=True)
    known = not any(isinstance(end, jax.core.Tracer) for end in (low, high))
    if known and np.asarray(low) > np.asarray(high):
        got = f"{float(low)} and {float(high)}"
        raise errors.OptionError(f"{names[0]} at most {names[1]}", got, "swap them")


def check_pair(name: str, ends: Any, *, positive: bool = False) -> None:
    """An option (low, high), at least 0 or above."""
    if not (isinstance(ends, (tuple, list)) and len(ends) == 2):
        mend = f"pass two numbers, as {name}=(0.1, 0.3)"
        raise errors.OptionError(f"{name} to be (low, high)", errors.show(ends), mend)
    check_range(ends[0], ends[1], f" of {name}")
    if positive:
        checks.positive(f"low of {name}", ends[0])


def fill_of(fill: Scalar, dtype: Dtype) -> jax.Array:
    """A fill value in an array's dtype, which must hold it."""
    if isinstance(fill, jax.core.Tracer):
        return fill.astype(dtype)
    value = np.asarray(fill)
    with np.errstate(all="ignore"):
        narrow = value.astype(dtype)
    rounds = jnp.issubdtype(dtype, jnp.inexact)
    if np.isfinite(narrow) != np.isfinite(value) if rounds else narrow != value:
        mend = "pass a fill that it holds, or cast x"
        raise errors.OptionError(f"fill that {jnp.dtype(dtype)} holds", f"{fill}", mend)
    return jnp.asarray(narrow)


def check_fill(fill: Scalar) -> None:
    checks.number("fill", fill, -float("inf"), float("inf"))
