"""Sophia: momentum over the diagonal of the Hessian, clipped."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.core.types import Key, Scalar, Schedule, Tree
from fnn.optim.arithmetic import as_dtype, average, increment
from fnn.optim.decay import add_decayed_weights
from fnn.optim.masking import Mask
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


class SophiaState(NamedTuple):
    """The averages of the gradient and of the Hessian's diagonal, and the key of its estimates."""

    count: jax.Array
    mu: Tree
    nu: Tree
    key: Key | None


@builder
def scale_by_sophia(
    b1: Scalar = 0.96,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-12,
    gamma: Scalar = 0.01,
    clip_threshold: Scalar = 1.0,
    update_interval: Scalar = 10,
    key: Key | None = None,
) -> Transform:
    """The gradient's first moment over the Hessian's diagonal, clipped.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        h_t = b2 h_{t-k} + (1 - b2) hhat_t if t mod k = 1, else h_{t-1}
        u_t = clip(m_t / max(gamma h_t, eps), -threshold, threshold)

    - `b1`, `b2`: the weights of the old averages, in [0, 1). All defaults are the paper's for
      Hutchinson's estimate.
    - `eps`: the smallest denominator; where the curvature is not positive, u is the momentum's
      sign.
    - `gamma`: the larger, the fewer elements are clipped; 10 to 50 percent should stay unclipped.
    - `clip_threshold`: the largest update of an element.
    - `update_interval`: k, the number of updates that share an estimate.
    - `key`: the estimates' key; None if `hessian` is passed.

    `update` takes hhat as `hessian`, a tree like the gradients, read at every k-th update (for
    classifiers, the paper's is B g^2 with labels drawn from the model); or it takes `value_fn` and
    estimates hhat = r * (H r) with random signs r, as Hutchinson does. The paper draws r from a
    normal distribution, which has more variance: signs are exact for a diagonal Hessian.

    Raises InputError with neither; with value_fn, ParamsError without params and RandomKeyError
    without a key. Liu et al. (2024), algorithm 3; Hutchinson (1989).

    >>> tx = scale_by_sophia(b1=0.0, b2=0.0, gamma=1.0)
    >>> g = jnp.array([3.0, 3.0])
    >>> print(tx.update(g, tx.init(g), hessian=jnp.array([6.0, 1.0]))[0])
    [0.5 1. ]
    """
    checks.number("b1", b1, 0.0, 1.0, open_high=True)
    checks.number("b2", b2, 0.0, 1.0, open_high=True)
    checks.number("eps", eps, 0.0, float("inf"))
    checks.number("gamma", gamma, 0.0, float("inf"))
    checks.number("clip_threshold", clip_threshold, 0.0, float("inf"))
    checks.number("update_interval", update_interval, 1.0, float("inf"))
    first_key = None if key is None else checks.typed_key(key)

    def init(params):
        own_key = None if first_key is None else jax.random.clone(first_key)  # may be donated
        zeros = zeros_like(params), zeros_like(params)
        return SophiaState(jnp.zeros((), jnp.int32), *zeros, own_key)

    def update(grads, opt_state, params=None, *, hessian=None, value_fn=None, **extra):
        check_state(opt_state, SophiaState)
        check_alike("grads", grads, "the optimizer's state", opt_state.mu)
        count, mu, nu, key = opt_state
        if hessian is not None:
            check_alike("hessian", hessian, "grads", grads)
        else:
            _check_estimate(params, value_fn, key)

        def renewed(nu):
            estimate = hessian
            if estimate is None:
                estimate = hutchinson(value_fn, params, jax.random.fold_in(key, count))
            return jax.tree.map(lambda h, e: average(b2, h, as_dtype(e, h.dtype)), nu, estimate)

        fresh = count % as_dtype(update_interval, count.dtype) == 0
        nu = jax.lax.cond(fresh, renewed, lambda nu: nu, nu)

        def rule(p, g, m, h):
            m = average(b1, m, g)
            floor = jnp.maximum(as_dtype(gamma, g.dtype) * h, as_dtype(eps, g.dtype))
            most = as_dtype(clip_threshold, g.dtype)
            inside = jnp.abs(m) < most * floor  # so that neither quotient nor derivative overflows
            return jnp.where(inside, m / jnp.where(inside, floor, 1), most * jnp.sign(m)), m, h

        updates, mu, nu = each_leaf(rule, grads, slots=[mu, nu])
        return updates, SophiaState(increment(count), mu, nu, key)

    return Transform(init, update)


@builder
def sophia(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.96,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-12,
    weight_decay: Scalar | Schedule = 0.2,
    gamma: Scalar = 0.01,
    clip_threshold: Scalar = 1.0,
    update_interval: Scalar = 10,
    key: Key | None = None,
    mask: Mask = None,
) -> Transform:
    """Sophia: p = p - learning_rate (clip(m / max(gamma h, eps)) + weight_decay p).

    - `weight_decay`, `mask`: decoupled, see `add_decayed_weights`; the default is the paper's.
    - the others: see `scale_by_sophia`; `update` takes `hessian` or `value_fn`.

    >>> tx = sophia(0.1, key=jax.random.key(0))
    >>> p = jnp.array([3.0])
    >>> print(tx.update(p, tx.init(p), p, value_fn=lambda p: jnp.sum(p**2))[0].round(4))
    [-0.16]
    """
    return chain(
        scale_by_sophia(b1, b2, eps, gamma, clip_threshold, update_interval, key),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def hutchinson(value_fn: Any, params: Tree, key: Key) -> Tree:
    """r * (H r) for random signs r: its mean is the diagonal of the Hessian H of value_fn."""
    leaves, treedef = jax.tree.flatten(params)
    signs = treedef.unflatten(
        jax.random.rademacher(jax.random.fold_in(key, i), jnp.shape(leaf), jnp.result_type(leaf))
        for i, leaf in enumerate(leaves)
    )
    _, curved = jax.jvp(jax.grad(value_fn), (params,), (signs,))
    return jax.tree.map(jnp.multiply, signs, curved)


def _check_estimate(params: Tree, value_fn: Any, key: Key | None) -> None:
    if not callable(value_fn):
        raise errors.InputError(
            "hessian, a tree like the gradients, or value_fn, a function of the params",
            f"value_fn {errors.show(value_fn)}",
            "pass one, as tx.update(grads, opt_state, params, value_fn=lambda p: loss(p, batch))",
        )
    need_params(params)
    if key is None:
        raise errors.RandomKeyError(
            "a key to estimate the Hessian with", "key=None", "build it with key=jax.random.key(0)"
        )
