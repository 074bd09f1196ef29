"""Methods that use only the gradient's sign: signSGD, Signum, Lion, Rprop."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.origins import builder
from fnn.core.types import Dtype, Scalar, Schedule, Tree
from fnn.optim.adam import check_decays
from fnn.optim.arithmetic import as_dtype, average, divide
from fnn.optim.averaging import ema
from fnn.optim.decay import add_decayed_weights
from fnn.optim.masking import Mask
from fnn.optim.transform import (
    Transform,
    chain,
    kept_in,
    leafwise,
    scale_by_learning_rate,
    stateless,
)


class LionState(NamedTuple):
    """The first moment of the gradient, float32 or wider."""

    mu: Tree


class RpropState(NamedTuple):
    """Each element's step size, and the sign of its last gradient."""

    step_sizes: Tree
    prev_signs: Tree


class ScheduledRpropState(NamedTuple):
    """The number of updates, each element's step size over the schedule's, and the last sign."""

    count: jax.Array
    step_sizes: Tree
    prev_signs: Tree


def scale_by_sign() -> Transform:
    """The gradient's sign, u = sign(g): -1, 0 or 1; for complex params, u = g / |g|.

    Bernstein et al. (2018), algorithm 1.

    >>> tx = scale_by_sign()
    >>> g = jnp.array([3.0, 0.0, -0.1])
    >>> print(tx.update(g, tx.init(g))[0])
    [ 1.  0. -1.]
    """
    return stateless(lambda p, g: jnp.sign(g))


@builder
def sign_sgd(learning_rate: Scalar | Schedule) -> Transform:
    """Sign descent: p = p - learning_rate sign(g).

    >>> tx = sign_sgd(0.1)
    >>> g = jnp.array([3.0, -0.1])
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.1  0.1]
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


@builder
def signum(
    learning_rate: Scalar | Schedule, beta: Scalar = 0.9, accumulator_dtype: Dtype = None
) -> Transform:
    """Signum, the sign of the momentum: p = p - learning_rate sign(m), m of `ema` with beta.

    - `beta`: the weight of the old momentum, in [0, 1).
    - `accumulator_dtype`: see `ema`.

    Bernstein et al. (2018), algorithm 2.

    >>> tx = signum(0.1)
    >>> g = jnp.array([3.0, -0.1])
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.1  0.1]
    """
    momentum = ema(beta, debias=False, accumulator_dtype=accumulator_dtype)
    return chain(momentum, scale_by_sign(), scale_by_learning_rate(learning_rate))


@builder
def scale_by_lion(b1: Scalar = 0.9, b2: Scalar = 0.99, mu_dtype: Dtype = None) -> Transform:
    """The sign of a moment that is one gradient ahead of the one kept.

        u_t = sign(b1 m_{t-1} + (1 - b1) g_t)
        m_t = b2 m_{t-1} + (1 - b2) g_t

    - `b1`, `b2`: the weight of the old moment in the update, and in the new moment, in [0, 1).
    - `mu_dtype`: the dtype of m between updates; None is float32 or wider.

    For complex params, sign(z) is z / |z|. Chen et al. (2023), algorithm 2.

    >>> tx = scale_by_lion()
    >>> g = jnp.array([3.0, 0.0, -0.1])
    >>> print(tx.update(g, tx.init(g))[0])
    [ 1.  0. -1.]
    """
    check_decays(b1=b1, b2=b2)
    keep = kept_in("mu_dtype", mu_dtype)

    def rule(t, p, g, m):
        return jnp.sign(average(b1, m, g)), keep(average(b2, m, g))

    return leafwise(LionState, rule, lambda p: (keep(jnp.zeros_like(p)),))


@builder
def lion(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    mu_dtype: Dtype = None,
    weight_decay: Scalar | Schedule = 1e-3,
    mask: Mask = None,
) -> Transform:
    """Lion with decoupled decay: p = p - learning_rate (u + weight_decay p), see `scale_by_lion`.

    - `learning_rate`: a number or a schedule f(count); a third to a tenth of
      Adam's, since every element moves by all of it.
    - `b1`, `b2`, `mu_dtype`: see `scale_by_lion`; the defaults are the paper's.
    - `weight_decay`, `mask`: see `add_decayed_weights`; the default decay is optax's.

    >>> tx = lion(0.1, weight_decay=0.5)
    >>> p, g = jnp.array([2.0]), jnp.array([3.0])
    >>> print(tx.update(g, tx.init(p), p)[0])
    [-0.2]
    """
    return chain(
        scale_by_lion(b1, b2, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@builder
def scale_by_rprop(
    learning_rate: Scalar | Schedule,
    eta_minus: Scalar = 0.5,
    eta_plus: Scalar = 1.2,
    min_step_size: Scalar = 1e-6,
    max_step_size: Scalar = 50.0,
) -> Transform:
    """The gradient's sign times a step size that grows until the sign flips, and then shrinks.

        d_t = d_{t-1} eta_plus     if g_t g_{t-1} > 0
              d_{t-1} eta_minus    if g_t g_{t-1} < 0, and then g_t = 0
              d_{t-1}              else
        u_t = d_t sign(g_t)

    - `learning_rate`: the first step size d_0 of every element. A schedule f(count) scales all
      steps: then d_t = f(t) e_t, where e_0 = 1 grows and shrinks.
    - `eta_minus`, `eta_plus`: in [0, 1] and [1, inf].
    - `min_step_size`, `max_step_size`: the bounds of d_t when it changes.

    For full-batch gradients, since noise flips signs. Riedmiller & Braun (1993), in the form
    iRprop- of Igel & Huesken (2000), which makes no step when the sign flips.

    >>> tx = scale_by_rprop(1.0)
    >>> opt_state = tx.init(jnp.zeros(1))
    >>> for g in (3.0, 0.1, -0.2, -5.0):
    ...     updates, opt_state = tx.update(jnp.full(1, g), opt_state)
    ...     print(updates)
    [1.]
    [1.2]
    [0.]
    [-0.6]
    """
    schedule = learning_rate if callable(learning_rate) else None
    if schedule is None:
        checks.number("learning_rate", learning_rate, 0.0, float("inf"))
    checks.number("eta_minus", eta_minus, 0.0, 1.0)
    checks.number("eta_plus", eta_plus, 1.0, float("inf"))
    checks.number("min_step_size", min_step_size, 0.0, float("inf"))
    checks.number("max_step_size", max_step_size, 0.0, float("inf"))

    def start(p):
        checks.real("params for rprop", p)
        return jnp.full_like(
            p, as_dtype(1 if schedule else learning_rate, p.dtype)
        ), jnp.zeros_like(p)

    def rule(t, p, g, d, before):
        checks.real("gradients for rprop", g)
        unit = schedule((t - 1).astype(jnp.int32)) if schedule else 1
        unit = as_dtype(unit, g.dtype)
        shrink, grow = as_dtype(eta_minus, g.dtype), as_dtype(eta_plus, g.dtype)
        low, high = as_dtype(min_step_size, g.dtype), as_dtype(max_step_size, g.dtype)
        sign = jnp.sign(g)
        turn = sign * before
        bounds = divide(low, unit), divide(high, unit)
        changed = jnp.clip(d * jnp.where(turn > 0, grow, shrink), *bounds)
        d = jnp.where((turn == 0) | (unit == 0), d, changed)
        sign = jnp.where(turn < 0, 0, sign)
        return unit * d * sign, d, sign

    return leafwise(ScheduledRpropState if schedule else RpropState, rule, start)


@builder
def rprop(
    learning_rate: Scalar | Schedule,
    eta_minus: Scalar = 0.5,
    eta_plus: Scalar = 1.2,
    min_step_size: Scalar = 1e-6,
    max_step_size: Scalar = 50.0,
) -> Transform:
    """Rprop: a step size for each element, see `scale_by_rprop`.

    - `learning_rate`: the first step size; a schedule f(count) scales all steps.
    - `eta_minus`, `eta_plus`, `min_step_size`, `max_step_size`: see `scale_by_rprop`; the defaults
      are the paper's.

    >>> tx = rprop(0.1)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.1]
    """
    steps = scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size)
    return chain(steps, scale_by_learning_rate(1.0))
