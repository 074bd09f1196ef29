"""Losses of predicted numbers, elementwise: [...] -> [...].

Which axes make up an example is not known here, so none is summed: the mean over all elements,
which `fnn.train.supervised` takes, is the mean squared (absolute, ...) error.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.types import Scalar
from fnn.losses.inputs import same_shape
from fnn.losses.masking import check_mask, clear, masked
from fnn.losses.numerics import excess, magnitude, times


def _difference(
    predictions: jax.Array, targets: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    predictions, targets = same_shape(predictions=predictions, targets=targets)
    mask = check_mask(mask, predictions.shape)
    return clear(predictions, mask) - clear(targets, mask), mask


@errors.named
def squared_error(
    predictions: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Squared error, (y - t)^2, without a factor 1/2: [...] -> [...].

    Elementwise, so that its mean is the mean squared error whatever an example's axes are.

    - `predictions`, `targets`: floating, of one shape.
    - `mask`: False where the loss and its gradient are 0, whatever the inputs hold there.

    Computed and returned in float32 or wider.
    Raises ShapeError if the shapes differ, DtypeError for integers.

    >>> print(squared_error(jnp.array([1.0, 5.0]), jnp.array([1.0, 3.0])))
    [0. 4.]
    """
    r, mask = _difference(predictions, targets, mask)
    return masked(jnp.square(r), mask)


@errors.named
def absolute_error(
    predictions: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Absolute error, |y - t|: [...] -> [...]. Where y = t its gradient is 0.

    - `predictions`, `targets`: floating, of one shape.
    - `mask`: False where the loss and its gradient are 0, whatever the inputs hold there.

    Computed and returned in float32 or wider.
    Raises ShapeError if the shapes differ, DtypeError for integers.

    >>> print(absolute_error(jnp.array([1.0, 5.0]), jnp.array([1.0, 3.0])))
    [0. 2.]
    """
    r, mask = _difference(predictions, targets, mask)
    return masked(magnitude(r), mask)


@errors.named
def huber(
    predictions: jax.Array,
    targets: jax.Array,
    delta: Scalar = 1.0,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Half the squared error up to delta, linear beyond, r = y - t: [...] -> [...].

        r^2 / 2 where |r| <= delta, delta (|r| - delta / 2) elsewhere

    - `predictions`, `targets`: floating, of one shape.
    - `delta`: the largest size of the gradient, at least 0; 1 by convention.
    - `mask`: False where the loss and its gradient are 0, whatever the inputs hold there.

    Computed and returned in float32 or wider.
    Raises ShapeError if the shapes differ, DtypeError for integers, OptionError for a negative
    delta. Huber (1964).

    >>> print(huber(jnp.array([1.0, 5.0]), jnp.array([0.0, 0.0])))
    [0.5 4.5]
    """
    checks.number("delta", delta, 0.0, math.inf)
    r, mask = _difference(predictions, targets, mask)
    bound = jnp.asarray(delta, r.dtype)
    near = jnp.where(r > bound, bound, jnp.where(r < -bound, -bound, r))
    far = jnp.where(jnp.isinf(near), near, r - near / 2)
    return masked(times(near, far), mask)


@errors.named
def log_cosh(
    predictions: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Log of the hyperbolic cosine of the error, log cosh(y - t): [...] -> [...].

    About half the squared error below 1 and the absolute error less log 2 above; smooth
    everywhere, with gradient tanh(y - t).

    - `predictions`, `targets`: floating, of one shape.
    - `mask`: False where the loss and its gradient are 0, whatever the inputs hold there.

    Computed and returned in float32 or wider; finite for every finite error, and exact near 0.
    Raises ShapeError if the shapes differ, DtypeError for integers.

    >>> print(log_cosh(jnp.array([1e30, 0.0]), jnp.array([0.0, 0.0])))
    [1.e+30 0.e+00]
    """
    r, mask = _difference(predictions, targets, mask)
    near = jnp.abs(r) < 1
    s = jnp.sinh(jnp.where(near, r, 0))  # cosh^2 = 1 + sinh^2 loses nothing near 0
    a = jnp.abs(jnp.where(near, 1, r))
    far = a + jnp.log1p(jnp.exp(-2 * a)) - math.log(2)
    return masked(jnp.where(near, jnp.log1p(s * s) / 2, far), mask)


@errors.named
def gaussian_nll(
    mean: jax.Array, log_var: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Negative log-likelihood of targets under normal distributions, in nats: [...] -> [...].

        (log 2 pi + log_var + (t - mean)^2 / exp(log_var)) / 2

    - `mean`, `log_var`, `targets`: floating, of one shape. A network outputs the log-variance,
      since any number is one.
    - `mask`: False where the loss and its gradient are 0, whatever the inputs hold there.

    Computed and returned in float32 or wider. The constant is kept: it is the whole -log density.
    Raises ShapeError if the shapes differ, DtypeError for integers. Nix & Weigend (1994).

    >>> print(gaussian_nll(jnp.zeros(2), jnp.zeros(2), jnp.array([0.0, 1.0])).round(3))
    [0.919 1.419]
    """
    mean, log_var, targets = same_shape(mean=mean, log_var=log_var, targets=targets)
    mask = check_mask(mask, mean.shape)
    mean, log_var, targets = (clear(x, mask) for x in (mean, log_var, targets))
    largest = 0.99 * math.log(jnp.finfo(mean.dtype).max)  # no infinity for (t - mean) = 0 to meet
    z = (targets - mean) * jnp.exp(jnp.minimum(-log_var / 2, largest))
    return masked((math.log(2 * math.pi) + log_var + z * z) / 2, mask)


@errors.named
def poisson_nll(
    log_rate: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Negative log-likelihood of counts under Poisson distributions, in nats: [...] -> [...].

        exp(log_rate) - t log_rate + log t!

    - `log_rate`, `targets`: floating, of one shape; targets are counts, at least 0.
    - `mask`: False where the loss and its gradient are 0, whatever the inputs hold there.

    Computed and returned in float32 or wider. A rate of 0 (log_rate of minus infinity) is certain
    of the count 0. The constant log t! is kept: it is the whole -log probability.
    Raises ShapeError if the shapes differ, DtypeError for integers.

    >>> print(poisson_nll(jnp.zeros(2), jnp.array([0.0, 3.0])).round(3))
    [1.    2.792]
    """
    log_rate, targets = same_shape(log_rate=log_rate, targets=targets)
    mask = check_mask(mask, log_rate.shape)
    log_rate, targets = clear(log_rate, mask), clear(targets, mask)
    many = targets > 10  # where the terms are large and all but cancel
    few, t = jnp.where(many, 1, targets), jnp.where(many, targets, 11)
    weighed = jnp.where((few == 0) & jnp.isneginf(log_rate), 0, log_rate)
    losses = jnp.exp(jnp.where(many, 0, log_rate)) - few * weighed + jax.lax.lgamma(few + 1)
    tail = (math.log(2 * math.pi) + jnp.log(t)) / 2 + _stirling(t)
    return masked(jnp.where(many, t * excess(log_rate - jnp.log(t)) + tail, losses), mask)


def _stirling(t: jax.Array) -> jax.Array:
    """log t! less (t log t - t + log(2 pi t) / 2), for t above 10, to float64's digits."""
    square = 1 / (t * t)
    series = 1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))
    return series / t
