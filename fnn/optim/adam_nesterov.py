"""Adam with Nesterov's momentum: NAdam and Adan."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core.origins import builder
from fnn.core.types import Dtype, Scalar, Schedule, Tree
from fnn.optim.adam import AdamState, check_decays, check_epsilons, moments
from fnn.optim.arithmetic import as_dtype, average, corrected, over_root, sizes_like, square
from fnn.optim.decay import add_decayed_weights
from fnn.optim.masking import Mask
from fnn.optim.transform import Transform, chain, leafwise, scale_by_learning_rate


class AdanState(NamedTuple):
    """The moments of the gradient, its change and its square, and the last gradient."""

    count: jax.Array
    m: Tree
    v: Tree
    n: Tree
    g: Tree


@builder
def scale_by_nadam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Dtype = None,
) -> Transform:
    """Adam with Nesterov's momentum: the first moment as it will be at the next update.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        n_t = b2 n_{t-1} + (1 - b2) g_t^2            nhat_t = n_t / (1 - b2^t)
        mbar_t = b1 m_t / (1 - b1^{t+1}) + (1 - b1) g_t / (1 - b1^t)
        u_t = mbar_t / (sqrt(nhat_t) + eps)

    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`: see `scale_by_adam`; b1 is the paper's mu.

    The state keeps n as `nu`. Dozat (2016), algorithm 2.

    >>> tx = scale_by_nadam(b1=0.5)
    >>> g = jnp.array(3.0)
    >>> print(round(float(tx.update(g, tx.init(g))[0]), 3))
    1.333
    """
    check_decays(b1=b1, b2=b2)
    check_epsilons(eps=eps, eps_root=eps_root)

    start, keep = moments(mu_dtype)

    def rule(t, p, g, m, n):
        mu = as_dtype(b1, g.dtype)
        m = average(b1, m, g)
        n = average(b2, n, square(g))
        mbar = mu * corrected(m, b1, t + 1) + (1 - mu) * corrected(g, b1, t)
        return over_root(mbar, corrected(n, b2, t), eps, eps_root), keep(m), n

    return leafwise(AdamState, rule, start)


@builder
def nadam(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Dtype = None,
) -> Transform:
    """NAdam: Adam with Nesterov's momentum, see `scale_by_nadam`.

    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`: see `scale_by_adam`.

    >>> tx = nadam(1e-3, b1=0.0)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.001]
    """
    scaled = scale_by_nadam(b1, b2, eps, eps_root, mu_dtype)
    return chain(scaled, scale_by_learning_rate(learning_rate))


@builder
def nadamw(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Dtype = None,
    weight_decay: Scalar | Schedule = 1e-4,
    mask: Mask = None,
) -> Transform:
    """NAdam with decoupled decay: p = p - learning_rate (u + weight_decay p), `scale_by_nadam`.

    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`: see `scale_by_adam`.
    - `weight_decay`, `mask`: see `adamw`.

    >>> tx = nadamw(0.1, b1=0.0, weight_decay=0.5)
    >>> p, g = jnp.array([2.0]), jnp.array([3.0])
    >>> print(tx.update(g, tx.init(p), p)[0])
    [-0.2]
    """
    return chain(
        scale_by_nadam(b1, b2, eps, eps_root, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@builder
def scale_by_adan(
    b1: Scalar = 0.98,
    b2: Scalar = 0.92,
    b3: Scalar = 0.99,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
) -> Transform:
    """Adam with Nesterov's momentum in both moments, from the change of the gradient.

        m_t = b1 m_{t-1} + (1 - b1) g_t                             mhat_t = m_t / (1 - b1^t)
        v_t = b2 v_{t-1} + (1 - b2) (g_t - g_{t-1})                 vhat_t = v_t / (1 - b2^t)
        n_t = b3 n_{t-1} + (1 - b3) (g_t + b2 (g_t - g_{t-1}))^2    nhat_t = n_t / (1 - b3^t)
        u_t = (mhat_t + b2 vhat_t) / (sqrt(nhat_t) + eps)

    - `b1`, `b2`, `b3`: the weights of the old moments, in [0, 1): 1 - beta in the paper, whose
      betas weigh the new. b2 also weighs the change in u and n.
    - `eps`, `eps_root`: see `scale_by_adam`.

    g_0 is g_1, so the first change is zero. The corrections are those of the authors' program.
    Xie et al. (2022), algorithm 1.

    >>> tx = scale_by_adan()
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [1.]
    """
    check_decays(b1=b1, b2=b2, b3=b3)
    check_epsilons(eps=eps, eps_root=eps_root)

    def start(p):
        return jnp.zeros_like(p), jnp.zeros_like(p), sizes_like(p), jnp.zeros_like(p)

    def rule(t, p, g, m, v, n, before):
        ahead = as_dtype(b2, g.dtype)
        change = jnp.where(t == 1, 0, g - before)
        m = average(b1, m, g)
        v = average(b2, v, change)
        n = average(b3, n, square(g + ahead * change))
        moment = corrected(m, b1, t) + ahead * corrected(v, b2, t)
        return over_root(moment, corrected(n, b3, t), eps, eps_root), m, v, n, g

    return leafwise(AdanState, rule, start)


@builder
def adan(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.98,
    b2: Scalar = 0.92,
    b3: Scalar = 0.99,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar | Schedule = 0.02,
    mask: Mask = None,
) -> Transform:
    """Adan with decoupled decay: p = p - learning_rate (u + weight_decay p), see `scale_by_adan`.

    - `b1`, `b2`, `b3`, `eps`, `eps_root`: see `scale_by_adan`; the defaults are the paper's.
    - `weight_decay`: the share of p removed, times the learning rate; the paper's default. The
      paper divides p by 1 + learning_rate weight_decay, which is the same to first order.
    - `mask`: what decays, see `add_decayed_weights`; None is all.

    >>> tx = adan(0.1, weight_decay=0.5)
    >>> p, g = jnp.array([2.0]), jnp.array([3.0])
    >>> print(tx.update(g, tx.init(p), p)[0])
    [-0.2]
    """
    return chain(
        scale_by_adan(b1, b2, b3, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
