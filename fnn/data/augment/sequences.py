"""Sequences [..., T, C] masked and warped."""

from __future__ import annotations

import math

import jax
import jax.core
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import widened
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.data.augment.contract import (
    SEQUENCE,
    Augmentation,
    along,
    augmentation,
    between,
    check_fill,
    draws,
    f32,
    fill_of,
    whole,
)
from fnn.data.augment.interpolation import neighbours, weighed


@builder
def mask_spans(count: int, length: int, axis: int = -2, *, fill: Scalar = 0.0) -> Augmentation:
    """Mask spans along time or features: [..., T, C] -> [..., T, C], of any dtype.

    Each span's length is drawn uniformly from 0 ... length, then its start among those at which it
    fits; spans may overlap. SpecAugment, Park et al. (2019).

    - `count`: how many spans.
    - `length`: of the longest, in steps; at most the whole axis.
    - `axis`: -2 masks times, -1 features (the paper's frequencies).
    - `fill`: what is put in their place; the paper has the mean of the sequences, where it is 0.

    The function raises ShapeError if `length` is longer than the axis.

    >>> from fnn.data import augment
    >>> y = augment.mask_spans(1, 3)(jax.random.key(1), jnp.ones((8, 2), int))
    >>> print(y[:, 0])
    [1 1 1 1 0 1 1 1]
    """
    count, length = checks.count("count", count), checks.count("length", length)
    if isinstance(axis, bool) or axis not in (-2, -1):
        mend = "-2 is time, -1 the features"
        raise errors.OptionError("axis to be -2 or -1", errors.show(axis), mend)
    check_fill(fill)

    def fn(key, x):
        n = x.shape[axis]
        if n < length:
            got = f"x {x.shape}"
            mend = "mask shorter spans, or longer sequences"
            raise errors.ShapeError(f"an axis {axis} of at least length={length}", got, mend)

        u = jax.random.uniform(key, (2, count, 1), jnp.float32)
        sizes = whole(u[0], 0, length)
        starts = whole(u[1], 0, n - sizes)  # [count, 1]
        i = jnp.arange(n, dtype=jnp.int32)[None, :]
        masked = ((i >= starts) & (i < starts + sizes)).any(0)  # [n]
        return jnp.where(along(masked, x, axis), fill_of(fill, x.dtype), x)

    return augmentation("mask_spans", SEQUENCE, fn)


@builder
def time_warp(steps: Scalar) -> Augmentation:
    """Stretch the beginning and squeeze the end, or the reverse: [..., T, C] -> [..., T, C].

    A time c, drawn from steps ... T - 1 - steps, moves by w from -steps ... steps, and what lies
    between it and the ends, which stay, is stretched evenly; all uniformly. y is interpolated
    linearly between two times. SpecAugment, Park et al. (2019), with W = steps.

    - `steps`: the farthest move, at least 0, not necessarily whole; a traced number is not checked,
      and at most (T - 1) / 2.

    The function raises ShapeError for T of less than 2 steps + 1, DtypeError for integers.

    >>> from fnn.data import augment
    >>> y = augment.time_warp(3)(jax.random.key(0), jnp.linspace(0, 1, 9)[:, None])
    >>> print(y[:, 0].round(2))
    [0.   0.08 0.16 0.24 0.32 0.39 0.47 0.55 1.  ]
    """
    checks.number("steps", steps, 0.0, math.inf, open_high=True)

    def fn(key, x):
        last = x.shape[-2] - 1
        if not isinstance(steps, jax.core.Tracer) and last < 2 * float(steps):
            mend = "warp by fewer steps"
            raise errors.ShapeError(f"T of at least 2 x {steps} + 1", f"x {x.shape}", mend)
        most = jnp.clip(f32(steps), 0, max(last, 0) / 2)
        place, move = draws(key, 2)
        c = between(place, most, last - most)
        moved = c + between(move, -most, most)
        times = jnp.arange(last + 1, dtype=jnp.float32)
        ends = [jnp.float32(0), jnp.float32(max(last, 0))]
        knots, sources = (jnp.stack([ends[0], t, ends[1]]) for t in (moved, c))
        return _read(x, jnp.interp(times, knots, sources))

    return augmentation("time_warp", SEQUENCE, fn, floats=True)


def _read(x: jax.Array, times: jax.Array) -> jax.Array:
    """x at times between its steps, none outside: [..., T, C] and [t] -> [..., t, C]."""
    if x.shape[-2] == 0:
        return x
    parts = [
        weighed(
            along(weight, x, -2), widened(jnp.take(x, i.astype(jnp.int32), axis=-2, mode="clip"))
        )
        for i, weight in neighbours(times, x.shape[-2] - 1)
    ]
    return (parts[0] + parts[1]).astype(x.dtype)
