"""Adam, with decoupled decay, with the largest second moment, with the largest gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.origins import builder
from fnn.core.types import Dtype, Scalar, Schedule, Tree
from fnn.optim.arithmetic import as_dtype, average, corrected, divide, over_root, sizes_like, square
from fnn.optim.decay import add_decayed_weights
from fnn.optim.masking import Mask
from fnn.optim.transform import Transform, chain, kept_in, leafwise, scale_by_learning_rate


class AdamState(NamedTuple):
    """The number of updates and the moments of the gradient, float32 or wider."""

    count: jax.Array
    mu: Tree
    nu: Tree


class AmsgradState(NamedTuple):
    """Adam's state, and the largest second moment so far."""

    count: jax.Array
    mu: Tree
    nu: Tree
    nu_max: Tree


@builder
def scale_by_adam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Dtype = None,
) -> Transform:
    """The gradient's first moment over the root of its second, both corrected for their start.

        m_t = b1 m_{t-1} + (1 - b1) g_t              mhat_t = m_t / (1 - b1^t)
        v_t = b2 v_{t-1} + (1 - b2) g_t^2            vhat_t = v_t / (1 - b2^t)
        u_t = mhat_t / (sqrt(vhat_t) + eps)

    - `b1`, `b2`: the weights of the old moments, in [0, 1).
    - `eps`: added to the root.
    - `eps_root`: added under the root, which bounds its slope; the paper has none.
    - `mu_dtype`: the dtype of m between updates; None is float32 or wider. bfloat16 halves its
      memory.

    For complex params, g_t^2 is |g_t|^2. The arithmetic is in float32 or wider, the update in the
    gradient's dtype. A zero gradient gives a zero update, and derivatives through it are finite.
    Kingma & Ba (2015), algorithm 1.

    >>> tx = scale_by_adam()
    >>> g = jnp.array([3.0, -0.1])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [ 1. -1.]
    """
    check_decays(b1=b1, b2=b2)
    check_epsilons(eps=eps, eps_root=eps_root)
    start, keep = moments(mu_dtype)

    def rule(t, p, g, m, v):
        m = average(b1, m, g)
        v = average(b2, v, square(g))
        mhat, vhat = corrected(m, b1, t), corrected(v, b2, t)
        return over_root(mhat, vhat, eps, eps_root), keep(m), v

    return leafwise(AdamState, rule, start)


@builder
def adam(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Dtype = None,
) -> Transform:
    """Adam: p = p - learning_rate mhat / (sqrt(vhat) + eps), see `scale_by_adam`.

    - `learning_rate`: a number or a schedule f(count).
    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`: see `scale_by_adam`; the defaults are the paper's.

    >>> tx = adam(1e-3)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.001]
    """
    scaled = scale_by_adam(b1, b2, eps, eps_root, mu_dtype)
    return chain(scaled, scale_by_learning_rate(learning_rate))


@builder
def adamw(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Dtype = None,
    weight_decay: Scalar | Schedule = 1e-4,
    mask: Mask = None,
) -> Transform:
    """Adam with decoupled decay: p = p - learning_rate (u + weight_decay p), see `scale_by_adam`.

    - `learning_rate`: a number or a schedule f(count).
    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`: see `scale_by_adam`.
    - `weight_decay`: the share of p removed, times the learning rate; the default is optax's, a
      hundredth of PyTorch's.
    - `mask`: what decays, see `add_decayed_weights`; None is all.

    Loshchilov & Hutter (2019), algorithm 2.

    >>> tx = adamw(0.1, weight_decay=0.5)
    >>> p, g = jnp.array([2.0]), jnp.array([3.0])
    >>> print(tx.update(g, tx.init(p), p)[0])
    [-0.2]
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


# --- the largest value instead of the mean


@builder
def scale_by_amsgrad(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    correct_first: bool = False,
    mu_dtype: Dtype = None,
) -> Transform:
    """Adam with the largest second moment so far, so that no step grows back.

        m_t = b1 m_{t-1} + (1 - b1) g_t              mhat_t = m_t / (1 - b1^t)
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        w_t = max(w_{t-1}, v_t)                      what_t = w_t / (1 - b2^t)
        u_t = mhat_t / (sqrt(what_t) + eps)

    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`: see `scale_by_adam`.
    - `correct_first`: w_t = what_t = max(w_{t-1}, v_t / (1 - b2^t)), as in optax: one large first
      gradient then counts in full forever.

    The paper corrects neither moment, which amounts to another learning rate at each t; the
    corrections are common practice. Reddi, Kale & Kumar (2018), algorithm 2.

    >>> tx = scale_by_amsgrad(b1=0.0, b2=0.5)
    >>> _, opt_state = tx.update(jnp.full(1, 3.0), tx.init(jnp.zeros(1)))
    >>> _, opt_state = tx.update(jnp.zeros(1), opt_state)
    >>> print(opt_state.nu, opt_state.nu_max)
    [2.25] [4.5]
    """
    check_decays(b1=b1, b2=b2)
    check_epsilons(eps=eps, eps_root=eps_root)
    start, keep = moments(mu_dtype)

    def rule(t, p, g, m, v, largest):
        m = average(b1, m, g)
        v = average(b2, v, square(g))
        mhat = corrected(m, b1, t)
        if correct_first:
            vhat = largest = jnp.maximum(largest, corrected(v, b2, t))
        else:
            largest = jnp.maximum(largest, v)
            vhat = corrected(largest, b2, t)
        return over_root(mhat, vhat, eps, eps_root), keep(m), v, largest

    return leafwise(AmsgradState, rule, lambda p: (*start(p), sizes_like(p)))


@builder
def amsgrad(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    correct_first: bool = False,
    mu_dtype: Dtype = None,
) -> Transform:
    """AMSGrad: Adam with the largest second moment so far, see `scale_by_amsgrad`.

    - `correct_first`: the maximum is over corrected moments, as in optax.
    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`: see `scale_by_adam`.

    >>> tx = amsgrad(1e-3)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.001]
    """
    return chain(
        scale_by_amsgrad(b1, b2, eps, eps_root, correct_first, mu_dtype),
        scale_by_learning_rate(learning_rate),
    )


@builder
def scale_by_adamax(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8) -> Transform:
    """The gradient's first moment over its decayed largest absolute value.

        m_t = b1 m_{t-1} + (1 - b1) g_t              mhat_t = m_t / (1 - b1^t)
        v_t = max(b2 v_{t-1}, |g_t| + eps)
        u_t = mhat_t / v_t

    - `b1`: the weight of the old moment, in [0, 1).
    - `b2`: the decay of the largest value, in [0, 1).
    - `eps`: added to |g|, as is common; the paper has none, and with 0 nothing moves until the
      first nonzero gradient.

    The state keeps v as `nu`. Kingma & Ba (2015), algorithm 2.

    >>> tx = scale_by_adamax(b1=0.0, b2=0.5)
    >>> _, opt_state = tx.update(jnp.array([8.0]), tx.init(jnp.zeros(1)))
    >>> print(tx.update(jnp.array([1.0]), opt_state)[0])
    [0.25]
    """
    check_decays(b1=b1, b2=b2)
    check_epsilons(eps=eps)
    start, _ = moments(None)

    def rule(t, p, g, m, v):
        m = average(b1, m, g)
        v = jnp.maximum(as_dtype(b2, v.dtype) * v, jnp.abs(g) + as_dtype(eps, v.dtype))
        return divide(corrected(m, b1, t), v), m, v

    return leafwise(AdamState, rule, start)


@builder
def adamax(
    learning_rate: Scalar | Schedule, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8
) -> Transform:
    """Adamax: Adam with the largest gradient, decayed, as the scale; see `scale_by_adamax`.

    - `learning_rate`: a number or a schedule f(count); the paper's is 0.002.
    - `b1`, `b2`, `eps`: see `scale_by_adamax`; the defaults are the paper's.

    >>> tx = adamax(0.002)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.002]
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


@builder
def adamaxw(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar | Schedule = 1e-4,
    mask: Mask = None,
) -> Transform:
    """Adamax with decoupled decay: p = p - learning_rate (u + weight_decay p); `scale_by_adamax`.

    - `b1`, `b2`, `eps`: see `scale_by_adamax`; the defaults are the paper's.
    - `weight_decay`, `mask`: see `adamw`; the default is optax's.

    Kingma & Ba (2015), algorithm 2; Loshchilov & Hutter (2019), equation 12.

    >>> tx = adamaxw(0.1, weight_decay=0.5)
    >>> p, g = jnp.array([2.0]), jnp.array([3.0])
    >>> print(tx.update(g, tx.init(p), p)[0])
    [-0.2]
    """
    return chain(
        scale_by_adamax(b1, b2, eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


# --- what the family shares


def moments(mu_dtype: Dtype) -> tuple[Callable, Callable]:
    """The first values of a leaf's two moments, and the cast of the first one to `mu_dtype`."""
    keep = kept_in("mu_dtype", mu_dtype)
    return lambda p: (keep(jnp.zeros_like(p)), sizes_like(p)), keep


def check_decays(**decays: Scalar) -> None:
    for name, decay in decays.items():
        checks.number(name, decay, 0.0, 1.0, open_high=True)


def check_epsilons(**epsilons: Scalar) -> None:
    for name, eps in epsilons.items():
        checks.number(name, eps, 0.0, float("inf"))
