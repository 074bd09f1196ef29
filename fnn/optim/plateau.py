"""Smaller steps once the loss stops falling."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.optim.arithmetic import as_dtype, increment
from fnn.optim.schedules.curves import LAST, widest_float
from fnn.optim.transform import Transform, check_state, each_leaf


class PlateauState(NamedTuple):
    """The record of the loss; floats are in the widest enabled float.

    - `count`, `avg_value`: the number of values since the last full mean, and their mean.
    - `scale`: the factor of the updates.
    - `best_value`: the best mean so far.
    - `plateau_count`: how many means in a row brought no improvement.
    - `cooldown_count`: how many more means will not be counted.
    """

    count: jax.Array
    scale: jax.Array
    best_value: jax.Array
    plateau_count: jax.Array
    cooldown_count: jax.Array
    avg_value: jax.Array


@builder
def reduce_on_plateau(
    factor: Scalar = 0.1,
    patience: Scalar = 10,
    rtol: Scalar = 1e-4,
    atol: Scalar = 0.0,
    cooldown: Scalar = 0,
    accumulation_size: Scalar = 1,
    min_scale: Scalar = 0.0,
) -> Transform:
    """updates = scale * updates, where scale shrinks by `factor` when the loss stops falling.

        v < best - (rtol |best| + atol)             is an improvement: best = v
        scale = max(factor scale, min_scale)        after `patience` v in a row without one

    `update` needs the loss, `value=`. In a chain, put it after the learning rate.

    - `factor`: in [0, 1].
    - `patience`: how many values in a row without improvement shrink the scale, at least 1; one
      more than PyTorch's, which is how many it tolerates.
    - `rtol`, `atol`: how much a value must fall to count, relative to the best and absolute.
    - `cooldown`: how many values after a reduction are not counted.
    - `accumulation_size`: v is the mean of this many values: 1 for a validation loss, more for the
      loss of a batch.
    - `min_scale`: the lower bound of the scale.

    NaN is no improvement. Raises InputError without a value, ShapeError for one that is not a
    scalar.

    >>> tx = reduce_on_plateau(factor=0.5, patience=2)
    >>> opt_state = tx.init(jnp.ones(1))
    >>> for loss in (1.0, 1.0, 1.0):
    ...     updates, opt_state = tx.update(jnp.ones(1), opt_state, value=loss)
    >>> print(updates, opt_state.scale)
    [0.5] 0.5
    """
    checks.number("factor", factor, 0.0, 1.0)
    checks.number("patience", patience, 1, LAST)
    checks.number("rtol", rtol, 0.0, 1.0)
    checks.number("atol", atol, 0.0, math.inf)
    checks.number("cooldown", cooldown, 0, LAST)
    checks.number("accumulation_size", accumulation_size, 1, LAST)
    checks.number("min_scale", min_scale, 0.0, 1.0)

    def init(params):
        dtype = widest_float()
        return PlateauState(
            count=jnp.zeros((), jnp.int32),
            scale=jnp.ones((), dtype),
            best_value=jnp.full((), math.inf, dtype),
            plateau_count=jnp.zeros((), jnp.int32),
            cooldown_count=jnp.zeros((), jnp.int32),
            avg_value=jnp.zeros((), dtype),
        )

    def update(grads, opt_state, params=None, *, value=None, **extra):
        with errors.within("reduce_on_plateau"):
            check_state(opt_state, PlateauState)
            if value is None:
                mend = "pass it: tx.update(grads, opt_state, params, value=loss)"
                raise errors.InputError("the loss as value=", "none", mend)
            if jnp.shape(value) != ():
                mend = "average it: jnp.mean(loss)"
                raise errors.ShapeError("a scalar value", errors.show(value), mend)
        opt_state = _mean(opt_state, value)
        full = opt_state.count >= as_dtype(accumulation_size, jnp.int32)
        looked = _look(opt_state)
        opt_state = jax.tree.map(lambda new, old: jnp.where(full, new, old), looked, opt_state)
        scale = opt_state.scale
        (updates,) = each_leaf(lambda p, g: (as_dtype(scale, g.dtype) * g,), grads)
        return updates, opt_state

    def _mean(s: PlateauState, value):
        n = increment(s.count)
        dtype = s.avg_value.dtype
        mean = s.avg_value + (as_dtype(value, dtype) - s.avg_value) / n.astype(dtype)
        return s._replace(count=n, avg_value=mean)

    def _look(s: PlateauState):
        dtype = s.scale.dtype
        margin = as_dtype(rtol, dtype) * jnp.abs(s.best_value) + as_dtype(atol, dtype)
        margin = jnp.where(jnp.isfinite(s.best_value), margin, 0)  # inf - inf would be NaN
        better = s.avg_value < s.best_value - margin
        cooling = s.cooldown_count > 0
        bad = jnp.where(better | cooling, 0, increment(s.plateau_count))
        shrink = bad >= as_dtype(patience, jnp.int32)
        smaller = jnp.maximum(s.scale * as_dtype(factor, dtype), as_dtype(min_scale, dtype))
        rest = jnp.where(cooling, s.cooldown_count - 1, 0)
        return PlateauState(
            count=jnp.zeros_like(s.count),
            scale=jnp.where(shrink, smaller, s.scale),
            best_value=jnp.where(better, s.avg_value, s.best_value),
            plateau_count=jnp.where(shrink, 0, bad),
            cooldown_count=jnp.where(shrink, as_dtype(cooldown, jnp.int32), rest),
            avg_value=jnp.zeros_like(s.avg_value),
        )

    return Transform(init, update)
