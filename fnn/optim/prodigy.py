"""Prodigy: Adam that finds its learning rate."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.dtypes import widened
from fnn.core.origins import builder
from fnn.core.types import Dtype, Scalar, Schedule, Tree
from fnn.optim.arithmetic import as_dtype, average, correction, divide, increment, sqrt, tree_dtype
from fnn.optim.schedule_free import check_rate, rate_at
from fnn.optim.transform import (
    Transform,
    chain,
    check_alike,
    check_state,
    each_leaf,
    need_params,
    scale_by_learning_rate,
    zeros_like,
)


class ProdigyState(NamedTuple):
    """Adam's moments of d g, the sums s and r, the first params, and the distance d from them."""

    count: jax.Array
    exp_avg: Tree
    exp_avg_sq: Tree
    grad_sum: Tree
    params0: Tree
    estim_lr: jax.Array
    numerator_weighted: jax.Array


@builder
def scale_by_prodigy(
    learning_rate: Scalar | Schedule = 1.0,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar | None = None,
    eps: Scalar = 1e-8,
    estim_lr0: Scalar = 1e-6,
    estim_lr_coef: Scalar = 1.0,
    weight_decay: Scalar = 0.0,
    bias_correction: bool = False,
) -> Transform:
    """Adam times d, a lower estimate of the distance from the first params to the best.

        m_{k+1} = b1 m_k + (1 - b1) d_k g_k
        v_{k+1} = b2 v_k + (1 - b2) d_k^2 g_k^2
        r_{k+1} = b3 r_k + (1 - b3) gamma_k d_k^2 <g_k, x_0 - x_k>
        s_{k+1} = b3 s_k + (1 - b3) gamma_k d_k^2 g_k
        d_{k+1} = max(d_k, coef r_{k+1} / |s_{k+1}|_1)
        u_k = d_k (m_{k+1} / (sqrt(v_{k+1}) + d_k eps) + weight_decay x_k)

    The products and norms are over the whole tree, and so is d.

    - `learning_rate`: gamma, the same as that of `scale_by_learning_rate` at the end of the chain.
    - `b1`, `b2`, `eps`: see `scale_by_adam`.
    - `b3`: the weight of the old sums; None is sqrt(b2).
    - `estim_lr0`: d_0, positive and much too small.
    - `estim_lr_coef`: coef, the factor of the estimate; tune this, not the learning rate.
    - `weight_decay`: decoupled, and scaled by d like the rest.
    - `bias_correction`: multiply gamma_k by sqrt(1 - b2^k) / (1 - b1^k), as Adam does.

    Mishchenko & Defazio (2024), algorithm 4.

    >>> tx = scale_by_prodigy(estim_lr0=0.1, b1=0.0, b2=0.0)
    >>> p = jnp.array([3.0])
    >>> print(tx.update(p, tx.init(p), p)[0])
    [0.1]
    """
    check_rate(learning_rate)
    for name, beta in (("b1", b1), ("b2", b2), ("b3", 0.0 if b3 is None else b3)):
        checks.number(name, beta, 0.0, 1.0, open_high=True)
    checks.number("eps", eps, 0.0, float("inf"))
    checks.number("estim_lr0", estim_lr0, 0.0, float("inf"))
    checks.number("estim_lr_coef", estim_lr_coef, 0.0, float("inf"))
    checks.number("weight_decay", weight_decay, 0.0, float("inf"))

    def init(params):
        m, v, s = (zeros_like(params) for _ in range(3))
        dtype = tree_dtype(params)
        start = jax.tree.map(lambda p: jnp.array(widened(p)), params)  # a copy, for donation
        d = as_dtype(estim_lr0, dtype)
        return ProdigyState(jnp.zeros((), jnp.int32), m, v, s, start, d, jnp.zeros((), dtype))

    def update(grads, opt_state, params=None, **extra):
        need_params(params)
        check_state(opt_state, ProdigyState)
        check_alike("grads", grads, "the optimizer's state", opt_state.params0)
        count, m, v, s, p0, d, r = opt_state
        t = increment(count).astype(d.dtype)
        decay = sqrt(as_dtype(b2, d.dtype)) if b3 is None else as_dtype(b3, d.dtype)
        scale = sqrt(1 / correction(b2, t)) * correction(b1, t) if bias_correction else 1
        gamma = scale * rate_at(learning_rate, count, d.dtype)

        def rule(p, g, m, v, s):
            dk, scaled = d.astype(g.dtype), as_dtype(scale, g.dtype)
            m = average(b1, m, dk * g)
            v = average(b2, v, jnp.square(dk * g))
            s = average(decay, s, gamma.astype(g.dtype) * dk**2 * g)
            root = sqrt(v) + dk * as_dtype(eps, g.dtype)
            u = scaled * dk * (divide(m, root) + as_dtype(weight_decay, g.dtype) * p)
            return u, m, v, s

        updates, m, v, s = each_leaf(rule, grads, params, (m, v, s))
        inner = each_leaf(lambda p, g, p0: (g, g * (p0 - p)), grads, params, [p0])[1]
        r = average(decay, r, gamma * d**2 * _total(inner, d.dtype))
        bound = as_dtype(estim_lr_coef, d.dtype) * r
        d = jnp.maximum(d, divide(bound, _total(jax.tree.map(jnp.abs, s), d.dtype)))
        return updates, ProdigyState(increment(count), m, v, s, p0, d, r)

    return Transform(init, update)


def _total(tree: Tree, dtype: Dtype) -> jax.Array:
    return sum(
        (jnp.sum(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)), jnp.zeros((), dtype)
    )


@builder
def prodigy(
    learning_rate: Scalar | Schedule = 1.0,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar | None = None,
    eps: Scalar = 1e-8,
    estim_lr0: Scalar = 1e-6,
    estim_lr_coef: Scalar = 1.0,
    weight_decay: Scalar = 0.0,
    bias_correction: bool = False,
) -> Transform:
    """Prodigy: p = p - learning_rate u, see `scale_by_prodigy`.

    - `learning_rate`: leave it at 1; a schedule that starts or ends below 1 is fine.
    - the others: see `scale_by_prodigy`.

    >>> tx = prodigy(estim_lr0=0.1, b1=0.0, b2=0.0)
    >>> p = jnp.array([3.0])
    >>> print(tx.update(p, tx.init(p), p)[0])
    [-0.1]
    """
    scaling = scale_by_prodigy(
        learning_rate, b1, b2, b3, eps, estim_lr0, estim_lr_coef, weight_decay, bias_correction
    )
    return chain(scaling, scale_by_learning_rate(learning_rate))
