"""Schedules joined: one after the other, in pieces, and after a warm-up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.origins import builder
from fnn.core.types import Scalar, Schedule
from fnn.optim.schedules.curves import as_count, as_one_kind, curve, line, mix, real, switch, wave
from fnn.optim.schedules.inputs import horizons, least_of, numbers, rows
from fnn.optim.schedules.single import exponential


@builder
def join(schedules: Sequence[Schedule], boundaries: Sequence | jax.Array) -> Schedule:
    """One schedule after the other; at each boundary the next starts, with its own count from 0.

    - `schedules`: functions of a count, one more than boundaries.
    - `boundaries`: ascending counts, a sequence or one array [n].

    >>> from fnn.optim.schedules import constant, linear
    >>> print(join([linear(0.0, 1.0, 2), constant(0.5)], [3])(jnp.arange(5)))
    [0.  0.5 1.  0.5 0.5]
    """
    schedules, boundaries = rows("schedules", schedules, boundaries)
    for one in schedules:
        checks.function("schedules", one, "a count")

    def schedule(count):
        value = real(schedules[0](count))
        for boundary, one in zip(boundaries, schedules[1:], strict=True):
            whole, begin = as_one_kind(as_count(count), boundary)
            later = real(one(jnp.maximum(whole - begin, 0)))
            value = switch(count, boundary, value, later)
        return value

    return schedule


@builder
def piecewise_constant(values: Sequence | jax.Array, boundaries: Sequence | jax.Array) -> Schedule:
    """values[0], and values[i] from boundaries[i - 1] on.

    - `values`: the values themselves, not factors; one more than boundaries.
    - `boundaries`: ascending counts. Both are sequences, or arrays [n + 1] and [n].

    >>> print(piecewise_constant([1.0, 0.1], [2])(jnp.arange(4)))
    [1.  1.  0.1 0.1]
    """
    values, boundaries = rows("values", values, boundaries)

    def schedule(count):
        value = jnp.broadcast_to(real(values[0]), jnp.shape(as_count(count)))
        for boundary, later in zip(boundaries, values[1:], strict=True):
            value = switch(count, boundary, value, real(later))
        return value

    return schedule


@builder
def piecewise_interpolate(
    values: Sequence | jax.Array, boundaries: Sequence | jax.Array, kind: str = "linear"
) -> Schedule:
    """From values[0] at count 0 to values[i] at boundaries[i - 1], along curves.

    - `values`, `boundaries`: as in `piecewise_constant`.
    - `kind`: "linear", or "cosine", half a cosine between two values.

    >>> print(piecewise_interpolate([0.0, 1.0, 0.5], [2, 4])(jnp.arange(6)))
    [0.   0.5  1.   0.75 0.5  0.5 ]
    """
    values, boundaries = rows("values", values, boundaries)
    checks.choice("kind", kind, ("linear", "cosine"))
    return lambda count: curve(count, values, boundaries, kind)


@builder
def one_cycle(
    transition_steps: Scalar,
    peak_value: Scalar,
    pct_start: Scalar = 0.3,
    pct_final: Scalar | None = None,
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 1e4,
    kind: str = "cosine",
) -> Schedule:
    """Up to peak_value and down again, for super-convergence.

    From peak_value / div_factor at first, up to peak_value at pct_start T, and down at T to the
    first value / final_div_factor.

    - `transition_steps`: T, at least 0.
    - `pct_start`, `pct_final`: shares of T, in [0, 1]. With `pct_final`, the value is back at the
      first there, and a third phase follows, as in the paper. None and the defaults are PyTorch's.
    - `div_factor`, `final_div_factor`: at least 1.
    - `kind`: "cosine" or "linear", the paper's.

    Smith & Topin (2018); Smith (2018), section 4.

    >>> print(one_cycle(4, 1.0, pct_start=0.5, div_factor=10.0, kind="linear")(jnp.arange(3)))
    [0.1  0.55 1.  ]
    """
    horizons(transition_steps=transition_steps)
    numbers(peak_value=peak_value)
    checks.number("pct_start", pct_start, 0.0, 1.0)
    if pct_final is not None:
        checks.number("pct_final", pct_final, least_of(pct_start), 1.0)
    checks.number("div_factor", div_factor, 1.0, math.inf)
    checks.number("final_div_factor", final_div_factor, 1.0, math.inf)
    checks.choice("kind", kind, ("linear", "cosine"))

    def schedule(count):
        peak, steps = real(peak_value), jnp.asarray(transition_steps)
        first = peak / real(div_factor)
        values, boundaries = [first, peak], [real(pct_start) * real(steps)]
        if pct_final is not None:
            values, boundaries = [*values, first], [*boundaries, real(pct_final) * real(steps)]
        return curve(count, [*values, first / real(final_div_factor)], [*boundaries, steps], kind)

    return schedule


# --- after a warm-up ----------------------------------------------------------------------------


@builder
def warmup_constant(init_value: Scalar, peak_value: Scalar, warmup_steps: Scalar) -> Schedule:
    """A straight line from init_value to peak_value in warmup_steps, at least 0; then peak_value.

    >>> print(warmup_constant(0.0, 1.0, 2)(jnp.arange(4)))
    [0.  0.5 1.  1. ]
    """
    numbers(init_value=init_value, peak_value=peak_value)
    horizons(warmup_steps=warmup_steps)
    return lambda count: line(count, 0, warmup_steps, init_value, peak_value)


@builder
def warmup_linear(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: Scalar,
    decay_steps: Scalar,
    end_value: Scalar = 0.0,
) -> Schedule:
    """A straight line from init_value to peak_value, and another one to end_value.

    - `warmup_steps`: the first line's. `decay_steps`: both lines' together.

    >>> print(warmup_linear(0.0, 1.0, 2, 6)(jnp.arange(8)))
    [0.   0.5  1.   0.75 0.5  0.25 0.   0.  ]
    """
    numbers(init_value=init_value, peak_value=peak_value, end_value=end_value)
    horizons(warmup_steps=warmup_steps)
    horizons(least_of(warmup_steps), decay_steps=decay_steps)

    def schedule(count):
        values, boundaries = [init_value, peak_value, end_value], [warmup_steps, decay_steps]
        return curve(count, values, boundaries, "linear")

    return schedule


@builder
def warmup_cosine(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: Scalar,
    decay_steps: Scalar,
    end_value: Scalar = 0.0,
    exponent: Scalar = 1.0,
) -> Schedule:
    """A straight line from init_value to peak_value, and half a cosine to end_value.

    - `warmup_steps`: the line's. `decay_steps`: both together.
    - `exponent`: as in `cosine`.

    >>> print(warmup_cosine(0.0, 100.0, 2, 6)(jnp.arange(8)).round())
    [  0.  50. 100.  85.  50.  15.   0.   0.]
    """
    numbers(init_value=init_value, peak_value=peak_value, end_value=end_value)
    checks.number("exponent", exponent, 0.0, math.inf)
    horizons(warmup_steps=warmup_steps)
    horizons(least_of(warmup_steps), decay_steps=decay_steps)

    def schedule(count):
        end, begin = as_one_kind(decay_steps, warmup_steps)
        left = wave(count, warmup_steps, end - begin, exponent)
        warm = line(count, 0, warmup_steps, init_value, peak_value)
        return switch(count, warmup_steps, warm, mix(left, peak_value, end_value))

    return schedule


@builder
def warmup_exponential(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: Scalar,
    transition_steps: Scalar,
    decay_rate: Scalar,
    transition_begin: Scalar = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> Schedule:
    """A straight line from init_value to peak_value, and `exponential` from there.

    - `warmup_steps`: the line's, at least 0.
    - the others: as in `exponential`, whose count starts when the line ends.

    >>> print(warmup_exponential(0.0, 1.0, 2, 1, 0.5)(jnp.arange(5)))
    [0.   0.5  1.   0.5  0.25]
    """
    later = exponential(
        peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value
    )
    return join([warmup_constant(init_value, peak_value, warmup_steps), later], [warmup_steps])
