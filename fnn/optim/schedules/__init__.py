"""Schedules: functions of the count of updates made so far, from 0 to 2^31 - 1.

    fnn.optim.adam(fnn.optim.schedules.warmup_cosine(0.0, 1e-3, 1_000, 100_000))

Values are in the widest enabled float. Every number, horizons and boundaries included, may be an
array or a tracer, so `vmap` and `grad` over it work; a horizon to be differentiated is a float.
Integer horizons and boundaries are compared and subtracted as ints, since float32 is not exact
above 2^24. Beyond its horizon a schedule stays at its end value; a horizon of 0 is at its end at
once. A count may also be an array of counts, for plotting.
"""

from fnn.optim.schedules.joined import (
    join,
    one_cycle,
    piecewise_constant,
    piecewise_interpolate,
    warmup_constant,
    warmup_cosine,
    warmup_exponential,
    warmup_linear,
)
from fnn.optim.schedules.single import (
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    linear,
    polynomial,
    restarts,
)

__all__ = [
    "constant", "cosine", "exponential", "inverse_sqrt", "join", "linear", "one_cycle",
    "piecewise_constant", "piecewise_interpolate", "polynomial", "restarts", "warmup_constant",
    "warmup_cosine", "warmup_exponential", "warmup_linear",
]  # fmt: skip
