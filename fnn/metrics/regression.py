"""Metrics of predicted numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.metrics.metric import (
    Metric,
    add,
    amount,
    averaged,
    count,
    kept,
    metric,
    no_sum,
    pair,
    total,
)


@builder
def mean_squared_error() -> Metric:
    """The mean of (outputs - targets)^2 over all their entries: [...] and [...] -> [].

    Differences are computed in float32 or wider. Nothing accumulated gives NaN. Raises ShapeError
    unless outputs and targets have one shape, DtypeError for outputs that are not floating.

    >>> print(mean_squared_error().value(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    2.0
    """
    return averaged("mean_squared_error", lambda outputs, targets: _error(outputs, targets)[0] ** 2)


@builder
def r2(shift: Scalar = 0.0) -> Metric:
    """The coefficient of determination, 1 - sum (y - outputs)^2 / sum (y - mean(y))^2.

    It is taken over all entries of the targets y: [...] and [...] -> [].

    - `shift`: a value near the targets' mean. The mean is not known before the last batch, so the
      lower sum is computed as sum (y - shift)^2 - (sum (y - shift))^2 / n, which amplifies rounding
      by 1 + (mean - shift)^2 / variance: negligibly if the targets are within a few deviations of
      `shift`; five of float32's seven digits are lost at mean 300, deviation 1, shift 0.

    Targets that are all equal give NaN (or, if the lower sum does not round to 0, a meaningless
    value). Nothing accumulated gives NaN. Raises OptionError for a shift that is not a finite
    number, otherwise as `mean_squared_error`.

    >>> print(r2().value(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 2.0, 3.0])))
    0.5
    """
    largest = float(jnp.finfo(jnp.float32).max)
    checks.number("shift", shift, -largest, largest)

    def init():
        return {part: no_sum() for part in ("error", "first", "second")} | {"count": no_sum()}

    def update(accumulator, outputs, targets, mask, weights):
        error, targets = _error(outputs, targets)
        keep, w = kept(mask, weights, targets.shape)
        y = targets - jnp.asarray(shift).astype(targets.dtype)
        error, y = jnp.where(keep, error, 0), jnp.where(keep, y, 0)
        parts = {"error": error**2, "first": y, "second": y**2}
        sums = {part: add(accumulator[part], amount(x, keep, w)) for part, x in parts.items()}
        return sums | {"count": add(accumulator["count"], count(keep, w))}

    def compute(accumulator):
        error, first, second = (total(accumulator[part]) for part in ("error", "first", "second"))
        spread = second - first**2 / total(accumulator["count"])
        return jnp.where(spread > 0, 1 - error / spread, jnp.nan)

    return metric("r2", init, update, compute)


def _error(outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Outputs - targets, and the targets, in float32, or in float64 where x64 is on."""
    dtype = jnp.result_type(float)
    outputs, targets = (x.astype(dtype) for x in pair(outputs, targets, "targets"))
    return outputs - targets, targets
