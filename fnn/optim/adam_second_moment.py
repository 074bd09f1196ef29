"""Adam with another second moment, or less trust in it: RAdam, AdaBelief, Yogi."""

from __future__ import annotations

import jax.numpy as jnp

from fnn.core import checks
from fnn.core.origins import builder
from fnn.core.types import Scalar, Schedule
from fnn.optim.adam import AdamState, check_decays, check_epsilons, moments
from fnn.optim.arithmetic import (
    as_dtype,
    average,
    corrected,
    correction,
    divide,
    over_root,
    sizes_like,
    sqrt,
    square,
)
from fnn.optim.transform import Transform, chain, leafwise, scale_by_learning_rate


@builder
def scale_by_radam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
) -> Transform:
    """Adam, rectified: only momentum until the second moment is known well enough.

        m_t = b1 m_{t-1} + (1 - b1) g_t              mhat_t = m_t / (1 - b1^t)
        v_t = b2 v_{t-1} + (1 - b2) g_t^2            vhat_t = v_t / (1 - b2^t)
        rho_inf = 2 / (1 - b2) - 1                   rho_t = rho_inf - 2 t b2^t / (1 - b2^t)
        r_t = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))
        u_t = r_t mhat_t / (sqrt(vhat_t) + eps) if rho_t > threshold, else mhat_t

    - `b1`, `b2`, `eps`, `eps_root`: see `scale_by_adam`.
    - `threshold`: how many gradients the second moment must average over, at least 4, the paper's;
      5 is the authors' program's.

    Liu et al. (2020), algorithm 2.

    >>> tx = scale_by_radam(b1=0.5)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0])
    [3.]
    """
    check_decays(b1=b1, b2=b2)
    check_epsilons(eps=eps, eps_root=eps_root)
    checks.number("threshold", threshold, 4.0, float("inf"))

    start, _ = moments(None)

    def rule(t, p, g, m, v):
        m = average(b1, m, g)
        v = average(b2, v, square(g))
        mhat, vhat = corrected(m, b1, t), corrected(v, b2, t)
        rho_inf = 2 / (1 - as_dtype(b2, t.dtype)) - 1
        rho = rho_inf - 2 * t * (correction(b2, t) - 1)
        squared = divide((rho - 4) * (rho - 2) * rho_inf, (rho_inf - 4) * (rho_inf - 2) * rho)
        r = sqrt(jnp.where(squared > 0, squared, 0))  # below 4 it is not used
        known = rho > as_dtype(threshold, t.dtype)
        rectified = as_dtype(r, g.dtype) * over_root(mhat, vhat, eps, eps_root)
        return jnp.where(known, rectified, mhat), m, v

    return leafwise(AdamState, rule, start)


@builder
def radam(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
) -> Transform:
    """RAdam: Adam that warms itself up, see `scale_by_radam`.

    - `b1`, `b2`, `eps`, `eps_root`, `threshold`: see `scale_by_radam`.

    >>> tx = radam(1e-3)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.003]
    """
    return chain(
        scale_by_radam(b1, b2, eps, eps_root, threshold), scale_by_learning_rate(learning_rate)
    )


@builder
def scale_by_belief(
    b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-16, eps_root: Scalar = 1e-16
) -> Transform:
    """The gradient's first moment over the root mean square of its prediction errors.

        m_t = b1 m_{t-1} + (1 - b1) g_t                           mhat_t = m_t / (1 - b1^t)
        s_t = b2 s_{t-1} + (1 - b2) (g_t - m_t)^2 + eps_root      shat_t = s_t / (1 - b2^t)
        u_t = mhat_t / (sqrt(shat_t) + eps)

    - `b1`, `b2`: the weights of the old moments, in [0, 1).
    - `eps`: added to the root.
    - `eps_root`: added to s at each update; the paper has one eps for both. The defaults are
      those of the authors' program.

    The state keeps s as `nu`. Zhuang et al. (2020), algorithm 2.

    >>> tx = scale_by_belief(b1=0.5)
    >>> g = jnp.array([3.0])  # half of it is prediction error
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [2.]
    """
    check_decays(b1=b1, b2=b2)
    check_epsilons(eps=eps, eps_root=eps_root)

    start, _ = moments(None)

    def rule(t, p, g, m, s):
        m = average(b1, m, g)
        s = average(b2, s, square(g - m)) + as_dtype(eps_root, s.dtype)
        return over_root(corrected(m, b1, t), corrected(s, b2, t), eps, 0.0), m, s

    return leafwise(AdamState, rule, start)


@builder
def adabelief(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
) -> Transform:
    """AdaBelief: large steps where gradients are as predicted, see `scale_by_belief`.

    - `b1`, `b2`, `eps`, `eps_root`: see `scale_by_belief`; the defaults are the authors'.

    >>> tx = adabelief(1e-3, b1=0.5)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.002]
    """
    return chain(scale_by_belief(b1, b2, eps, eps_root), scale_by_learning_rate(learning_rate))


@builder
def scale_by_yogi(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    eps_root: Scalar = 0.0,
    initial_accumulator_value: Scalar = 1e-6,
) -> Transform:
    """Adam with a second moment that moves by g^2 whatever its distance from g^2.

        m_t = b1 m_{t-1} + (1 - b1) g_t                           mhat_t = m_t / (1 - b1^t)
        v_t = v_{t-1} - (1 - b2) sign(v_{t-1} - g_t^2) g_t^2      vhat_t = v_t / (1 - b2^t)
        u_t = mhat_t / (sqrt(vhat_t) + eps)

    - `b1`, `b2`, `eps`, `eps_root`: see `scale_by_adam`.
    - `initial_accumulator_value`: v_0; m_0 is 0, so a zero gradient moves nothing.

    The paper corrects neither moment; the corrections are Adam's, as is common. Zaheer
    et al. (2018), algorithm 2.

    >>> tx = scale_by_yogi(b2=0.75, initial_accumulator_value=1.0)
    >>> g = jnp.array([2.0, 0.5])
    >>> print(tx.update(g, tx.init(g))[1].nu)
    [2.     0.9375]
    """
    check_decays(b1=b1, b2=b2)
    check_epsilons(eps=eps, eps_root=eps_root, initial_accumulator_value=initial_accumulator_value)

    def start(p):
        v = sizes_like(p)
        return jnp.zeros_like(p), v + as_dtype(initial_accumulator_value, v.dtype)

    def rule(t, p, g, m, v):
        m = average(b1, m, g)
        new = square(g)
        # by comparison: the sign of a difference is NaN where both are infinite
        signed = jnp.where(new > v, new, jnp.where(new < v, -new, 0))
        v = v + (1 - as_dtype(b2, v.dtype)) * signed
        mhat, vhat = corrected(m, b1, t), corrected(v, b2, t)
        return over_root(mhat, vhat, eps, eps_root), m, v

    return leafwise(AdamState, rule, start)


@builder
def yogi(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    eps_root: Scalar = 0.0,
    initial_accumulator_value: Scalar = 1e-6,
) -> Transform:
    """Yogi: Adam whose step sizes change slowly, see `scale_by_yogi`.

    - `learning_rate`: a number or a schedule f(count); the paper's is 0.01.
    - `b1`, `b2`, `eps`, `eps_root`, `initial_accumulator_value`: see `scale_by_yogi`; the defaults
      are the paper's.

    >>> tx = yogi(0.01)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [-0.01]
    """
    return chain(
        scale_by_yogi(b1, b2, eps, eps_root, initial_accumulator_value),
        scale_by_learning_rate(learning_rate),
    )
