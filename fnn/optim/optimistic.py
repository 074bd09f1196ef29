"""Optimistic methods, for games: the gradient is taken to change on as it just did."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.origins import builder
from fnn.core.types import Dtype, Scalar, Schedule, Tree
from fnn.optim.adam import scale_by_adam
from fnn.optim.arithmetic import as_dtype, increment
from fnn.optim.transform import (
    Transform,
    chain,
    check_alike,
    check_state,
    each_leaf,
    scale_by_learning_rate,
    zeros_like,
)


class OptimisticState(NamedTuple):
    """The number of updates and the last gradient, float32 or wider."""

    count: jax.Array
    previous_gradient: Tree


@builder
def scale_by_optimistic_gradient(
    alpha: Scalar | Schedule = 1.0, beta: Scalar | Schedule = 1.0
) -> Transform:
    """The gradient and its last change: u_t = alpha g_t + beta (g_t - g_{t-1}).

    - `alpha`, `beta`: numbers or schedules f(count). 1 and 1 give the optimistic gradient; beta = 0
      the plain one.

    g_0 is g_1, so the first change is zero. Mokhtari, Ozdaglar & Pattathil (2020), equation 6.

    >>> tx = scale_by_optimistic_gradient()
    >>> first, opt_state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
    >>> print(first, tx.update(jnp.full(1, 3.0), opt_state)[0])
    [1.] [5.]
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not callable(value):
            checks.number(name, value, float("-inf"), float("inf"))

    def init(params):
        return OptimisticState(jnp.zeros((), jnp.int32), zeros_like(params, or_complex=True))

    def update(grads, opt_state, params=None, **extra):
        check_state(opt_state, OptimisticState)
        count, before = opt_state
        check_alike("grads", grads, "the optimizer's state", before)
        a, b = (value(count) if callable(value) else value for value in (alpha, beta))

        def rule(p, g, before):
            change = jnp.where(count == 0, 0, g - before)
            return as_dtype(a, g.dtype) * g + as_dtype(b, g.dtype) * change, g

        updates, before = each_leaf(rule, grads, None, (before,))
        return updates, OptimisticState(increment(count), before)

    return Transform(init, update)


@builder
def optimistic_gradient_descent(
    learning_rate: Scalar | Schedule,
    alpha: Scalar | Schedule = 1.0,
    beta: Scalar | Schedule = 1.0,
) -> Transform:
    """Optimistic descent: p = p - learning_rate (alpha g_t + beta (g_t - g_{t-1})).

    - `alpha`, `beta`: see `scale_by_optimistic_gradient`.

    It converges on bilinear games, on which plain descent and ascent spiral outwards. Mokhtari,
    Ozdaglar & Pattathil (2020), equation 6.

    >>> tx, g = optimistic_gradient_descent(0.1), jnp.ones(1)
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.1]
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), scale_by_learning_rate(learning_rate))


@builder
def optimistic_adam(
    learning_rate: Scalar | Schedule,
    optimism: Scalar | Schedule | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Dtype = None,
) -> Transform:
    """Optimistic Adam: p = p - learning_rate u_t - optimism (u_t - u_{t-1}), u of `scale_by_adam`.

    - `optimism`: the weight of the last change, likewise. None is the learning rate, as in the
      paper: p = p - 2 learning_rate u_t + learning_rate u_{t-1}.
    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`: see `scale_by_adam`.

    Daskalakis, Ilyas, Syrgkanis & Zeng (2018), algorithm 1.

    >>> tx, g = optimistic_adam(0.1), jnp.ones(1)
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.1]
    """
    ahead = learning_rate if optimism is None else optimism
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype),
        scale_by_optimistic_gradient(learning_rate, ahead),
        scale_by_learning_rate(1.0),
    )
