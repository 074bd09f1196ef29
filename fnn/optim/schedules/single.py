"""Schedules of one curve each."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.core.types import Scalar, Schedule
from fnn.optim.arithmetic import as_dtype
from fnn.optim.schedules.curves import (
    LAST,
    as_count,
    as_one_kind,
    bend,
    line,
    mix,
    raised,
    real,
    shares,
    switch,
    wave,
)
from fnn.optim.schedules.inputs import horizons, numbers


@builder
def constant(value: Scalar) -> Schedule:
    """The same value at every count.

    >>> print(constant(0.1)(5))
    0.1
    """
    numbers(value=value)
    return lambda count: jnp.broadcast_to(real(value), jnp.shape(as_count(count)))


@builder
def linear(
    init_value: Scalar, end_value: Scalar, transition_steps: Scalar, transition_begin: Scalar = 0
) -> Schedule:
    """A straight line: init_value + (end_value - init_value) (count - B) / T, for T steps from B.

    - `transition_steps`: T, at least 0. `transition_begin`: B, the steps before it starts.

    >>> print(linear(1.0, 0.0, 4)(jnp.arange(6)))
    [1.   0.75 0.5  0.25 0.   0.  ]
    """
    numbers(init_value=init_value, end_value=end_value)
    horizons(transition_steps=transition_steps, transition_begin=transition_begin)
    return lambda count: line(count, transition_begin, transition_steps, init_value, end_value)


@builder
def polynomial(
    init_value: Scalar,
    end_value: Scalar,
    power: Scalar,
    transition_steps: Scalar,
    transition_begin: Scalar = 0,
) -> Schedule:
    """end_value + (init_value - end_value) (1 - (count - B) / T)^power, for T steps from B.

    - `power`: at least 0; 1 is `linear`.
    - `transition_steps`: T, at least 0. `transition_begin`: B, the steps before it starts.

    >>> print(polynomial(1.0, 0.0, 2, 4)(jnp.arange(6)))
    [1.     0.5625 0.25   0.0625 0.     0.    ]
    """
    numbers(init_value=init_value, end_value=end_value)
    checks.number("power", power, 0.0, math.inf)
    horizons(transition_steps=transition_steps, transition_begin=transition_begin)

    def schedule(count):
        left, _ = shares(count, transition_begin, transition_steps)
        return mix(bend(left, power), init_value, end_value)

    return schedule


@builder
def exponential(
    init_value: Scalar,
    transition_steps: Scalar,
    decay_rate: Scalar,
    transition_begin: Scalar = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> Schedule:
    """init_value decay_rate^((count - B) / T), from count B on.

    - `transition_steps`: T, at least 1: the steps per factor of decay_rate. A traced one below 1
      counts as 1.
    - `decay_rate`: at least 0. `transition_begin`: B, the steps before it starts.
    - `staircase`: hold the value for T steps: the exponent is rounded down.
    - `end_value`: the bound of the value: the lowest for a rate below 1, else the highest. None
      sets none.

    >>> print(exponential(1.0, 2, 0.25)(jnp.arange(5)))
    [1.     0.5    0.25   0.125  0.0625]
    """
    numbers(init_value=init_value)
    checks.number("decay_rate", decay_rate, 0.0, math.inf)
    horizons(1, transition_steps=transition_steps)
    horizons(transition_begin=transition_begin)
    if end_value is not None:
        numbers(end_value=end_value)

    def schedule(count):
        count, begin, steps = as_one_kind(as_count(count), transition_begin, transition_steps)
        passed, steps = jnp.maximum(count - begin, 0), jnp.maximum(steps, 1)
        if staircase:
            times = real(jax.lax.stop_gradient(jnp.floor_divide(passed, steps)))
        else:
            times = real(passed) / real(steps)
        rate = real(decay_rate)
        value = real(init_value) * raised(rate, times)
        if end_value is None:
            return value
        end = real(end_value)
        return jnp.where(rate < 1, jnp.maximum(value, end), jnp.minimum(value, end))

    return schedule


@builder
def cosine(
    init_value: Scalar, decay_steps: Scalar, alpha: Scalar = 0.0, exponent: Scalar = 1.0
) -> Schedule:
    """Half a cosine: init_value (alpha + (1 - alpha) ((1 + cos(pi count / T)) / 2)^exponent).

    - `decay_steps`: T, at least 0. `alpha`: the end value, as a share of the first.
    - `exponent`: at least 0; above 1 it falls earlier.

    Loshchilov & Hutter (2017), equation 5.

    >>> print(cosine(100.0, 4)(jnp.arange(6)).round())
    [100.  85.  50.  15.   0.   0.]
    """
    numbers(init_value=init_value, alpha=alpha)
    checks.number("exponent", exponent, 0.0, math.inf)
    horizons(decay_steps=decay_steps)

    def schedule(count):
        return real(init_value) * mix(wave(count, 0, decay_steps, exponent), 1, alpha)

    return schedule


@builder
def restarts(
    init_value: Scalar, decay_steps: Scalar, t_mult: Scalar = 1, alpha: Scalar = 0.0
) -> Schedule:
    """SGDR: `cosine` repeated, each cycle `t_mult` times as long as the last.

    - `decay_steps`: the first cycle's length, at least 1. A traced one below 1 counts as 1.
    - `t_mult`: a whole number, at least 1; the paper uses 1 and 2.
    - `alpha`: the value at the end of a cycle, as a share of init_value.

    Loshchilov & Hutter (2017), section 3.

    >>> print(restarts(100.0, 2, t_mult=2)(jnp.arange(7)).round())
    [100.  50. 100.  85.  50.  15. 100.]
    """
    numbers(init_value=init_value, alpha=alpha)
    horizons(1, decay_steps=decay_steps, t_mult=t_mult)
    if not jnp.issubdtype(jnp.result_type(t_mult), jnp.integer):
        raise errors.OptionError("t_mult to be a whole number", errors.show(t_mult), "pass an int")

    def schedule(count):
        count, steps = as_one_kind(as_count(count), decay_steps)
        length = jnp.broadcast_to(jnp.maximum(steps, 1), count.shape)
        times = jnp.maximum(as_dtype(t_mult, length.dtype), 1)
        limit = as_dtype(LAST, length.dtype)

        def restart(_, cycle):  # `length` saturates instead of overflowing, `whole` does not
            passed, length, whole = cycle
            over = passed >= length
            longer = jnp.where(length > limit // times, limit, length * times), whole * real(times)
            now = jnp.where(over, passed - length, passed)
            return now, *(jnp.where(over, *two) for two in zip(longer, cycle[1:], strict=True))

        passed = jnp.where(times == 1, jnp.remainder(count, length), count)
        first = passed, length, real(length)
        passed, _, whole = jax.lax.fori_loop(0, 31, restart, first)  # 2^31 is beyond LAST
        return real(init_value) * mix(wave(passed, 0, whole), 1, alpha)

    return schedule


@builder
def inverse_sqrt(peak_value: Scalar, warmup_steps: Scalar, init_value: Scalar = 0.0) -> Schedule:
    """peak_value sqrt(W / count), after a straight line from init_value to peak_value in W steps.

    - `warmup_steps`: W, at least 0; 0 is like 1 without the line.

    Vaswani et al. (2017), equation 3, with step = count and peak_value = (d_model W)^(-1/2).

    >>> print(inverse_sqrt(1.0, 4)(jnp.array([0, 2, 4, 16])))
    [0.  0.5 1.  0.5]
    """
    numbers(peak_value=peak_value, init_value=init_value)
    horizons(warmup_steps=warmup_steps)

    def schedule(count):
        first = jnp.maximum(jnp.asarray(warmup_steps), 1)
        later = real(first) / real(jnp.maximum(*as_one_kind(as_count(count), first)))
        warm = line(count, 0, warmup_steps, init_value, peak_value)
        return switch(count, warmup_steps, warm, real(peak_value) * jnp.sqrt(later))

    return schedule
