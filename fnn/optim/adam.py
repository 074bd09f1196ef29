"""Adam."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn import checks, errors
from fnn.optim.transform import (
    Transform,
    as_dtype,
    chain,
    check_alike,
    check_state,
    increment,
    scale_by_learning_rate,
    sqrt,
    zeros_like,
)


class AdamState(NamedTuple):
    """The number of updates and the moments of the gradient, float32 or wider."""

    count: jax.Array
    mu: Any
    nu: Any


@errors.builder
def scale_by_adam(b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8) -> Transform:
    """The gradient's first moment over the root of its second, both corrected for their start.

        m_t = b1 m_{t-1} + (1 - b1) g_t              mhat_t = m_t / (1 - b1^t)
        v_t = b2 v_{t-1} + (1 - b2) g_t^2            vhat_t = v_t / (1 - b2^t)
        u_t = mhat_t / (sqrt(vhat_t) + eps)

    - `b1`, `b2`: the weights of the old moments, in [0, 1).
    - `eps`: added to the root.

    The arithmetic is in float32 or wider, the update in the gradient's dtype. A zero gradient
    gives a zero update, and derivatives through it are finite. Kingma & Ba (2015), algorithm 1.

    >>> tx = scale_by_adam()
    >>> g = jnp.array([3.0, -0.1])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [ 1. -1.]
    """
    checks.number("b1", b1, 0.0, 1.0, open_high=True)
    checks.number("b2", b2, 0.0, 1.0, open_high=True)
    checks.number("eps", eps, 0.0, float("inf"))

    def init(params):
        return AdamState(jnp.zeros((), jnp.int32), zeros_like(params), zeros_like(params))

    def update(grads, opt_state, params=None, **extra):
        check_state(opt_state, AdamState)
        check_alike("grads", grads, "the optimizer's state", opt_state.mu)
        t = increment(opt_state.count)

        def moment(decay, power):
            def decayed(old, g):
                weight = as_dtype(decay, old.dtype)
                return weight * old + (1 - weight) * g.astype(old.dtype) ** power

            return decayed

        def correction(decay, dtype):  # a factor, so that every element is multiplied
            return 1 / (1 - as_dtype(decay, dtype) ** t.astype(dtype))

        def direction(m, v, g):
            mhat, vhat = m * correction(b1, m.dtype), v * correction(b2, v.dtype)
            root = sqrt(vhat) + as_dtype(eps, v.dtype)
            u = jnp.where(root == 0, 0, mhat / jnp.where(root == 0, 1, root))
            return u.astype(g.dtype)

        mu = jax.tree.map(moment(b1, 1), opt_state.mu, grads)
        nu = jax.tree.map(moment(b2, 2), opt_state.nu, grads)
        return jax.tree.map(direction, mu, nu, grads), AdamState(t, mu, nu)

    return Transform(init, update)


@errors.builder
def adam(learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8) -> Transform:
    """Adam: p = p - learning_rate mhat / (sqrt(vhat) + eps), see `scale_by_adam`.

    - `learning_rate`: a number, an array, a tracer, or a schedule f(count).
    - `b1`, `b2`, `eps`: of the moments; the defaults are the paper's.

    >>> tx = adam(1e-3)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.001]
    """
    return chain(scale_by_adam(b1, b2, eps), scale_by_learning_rate(learning_rate))
