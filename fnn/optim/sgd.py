"""Stochastic gradient descent, with momentum and Nesterov's."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.core.types import Dtype, Key, Scalar, Schedule, Tree
from fnn.optim.arithmetic import as_dtype
from fnn.optim.clip import add_noise
from fnn.optim.transform import Transform, chain, kept_in, leafwise, scale_by_learning_rate


class TraceState(NamedTuple):
    """The velocity: a decayed sum of gradients, float32 or wider."""

    trace: Tree


@builder
def trace(decay: Scalar, nesterov: bool = False, accumulator_dtype: Dtype = None) -> Transform:
    """Momentum: v_t = decay v_{t-1} + g_t; the update is v_t, or g_t + decay v_t for Nesterov's.

    - `decay`: the weight of the old velocity, in [0, 1].
    - `nesterov`: look ahead along the new velocity.
    - `accumulator_dtype`: the dtype of v between updates; None is float32 or wider. bfloat16
      halves its memory.

    Polyak (1964); Nesterov (1983) in the form of Sutskever et al. (2013), section 2, with the
    look-ahead point as the parameter.

    >>> tx = trace(0.5)
    >>> g = jnp.ones(1)
    >>> first, state = tx.update(g, tx.init(g))
    >>> second, state = tx.update(g, state)
    >>> print(first, second)
    [1.] [1.5]
    """
    checks.number("decay", decay, 0.0, 1.0)
    keep = kept_in("accumulator_dtype", accumulator_dtype)

    def rule(t, p, g, v):
        mu = as_dtype(decay, g.dtype)
        v = mu * v + g
        return (g + mu * v if nesterov else v), keep(v)

    return leafwise(TraceState, rule, lambda p: (keep(jnp.zeros_like(p)),))


@builder
def sgd(
    learning_rate: Scalar | Schedule,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    accumulator_dtype: Dtype = None,
) -> Transform:
    """Stochastic gradient descent: p = p - learning_rate g, or along the momentum of g.

    - `learning_rate`: a number or a schedule f(count).
    - `momentum`: the decay of `trace`; None keeps no state.
    - `nesterov`, `accumulator_dtype`: see `trace`.

    Raises OptionError for Nesterov's momentum without a momentum.

    >>> tx = sgd(0.1)
    >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    >>> print(updates)
    [-0.1 -0.1]
    """
    if momentum is None and nesterov:
        raise errors.OptionError("a momentum for nesterov", "momentum=None", "pass momentum=0.9")
    if momentum is None:
        return scale_by_learning_rate(learning_rate)
    velocity = trace(momentum, nesterov, accumulator_dtype)
    return chain(velocity, scale_by_learning_rate(learning_rate))


@builder
def noisy_sgd(
    learning_rate: Scalar | Schedule,
    eta: Scalar = 0.01,
    gamma: Scalar = 0.55,
    key: Key | None = None,
) -> Transform:
    """Gradient descent with noise: p = p - learning_rate (g + N(0, eta / (1 + t)^gamma)).

    - `eta`, `gamma`, `key`: see `add_noise`; a key is required.

    Raises RandomKeyError without a key. Neelakantan et al. (2015), equation 1.

    >>> import jax
    >>> tx, g = noisy_sgd(0.1, eta=0.0, key=jax.random.key(0)), jnp.ones(2)
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.1 -0.1]
    """
    return chain(
        add_noise(eta, gamma, checks.typed_key(key)), scale_by_learning_rate(learning_rate)
    )
