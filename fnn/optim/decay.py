"""Decoupled weight decay."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from fnn.core import checks
from fnn.core.origins import builder
from fnn.core.types import Scalar, Schedule
from fnn.optim.arithmetic import as_dtype, increment
from fnn.optim.masking import Mask, masked
from fnn.optim.transform import CountState, Transform, each_leaf, need_params


@builder
def add_decayed_weights(weight_decay: Scalar | Schedule, mask: Mask = None) -> Transform:
    """Decoupled weight decay: u = u + weight_decay p.

    Placed just before `scale_by_learning_rate`, it shrinks p by the share learning_rate
    weight_decay at each update, whatever the moments. Placed before the moments, it is L2
    regularization: the derivative of weight_decay |p|^2 / 2.

    - `weight_decay`: a number or a schedule f(count), count from 0.
    - `mask`: what decays: bools like the params, a function of them, or patterns of paths, as
      `"*/kernel"` (see `masked`). None is all.

    Loshchilov & Hutter (2019), algorithm 2.

    >>> import jax
    >>> tx = add_decayed_weights(0.1, mask="kernel")
    >>> p = {"kernel": jnp.full(1, 2.0), "bias": jnp.ones(1)}
    >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)
    >>> print(updates["kernel"], updates["bias"])
    [0.2] [0.]
    """
    schedule = weight_decay if callable(weight_decay) else None
    if schedule is None:
        checks.number("weight_decay", weight_decay, 0.0, float("inf"))

    def init(params):
        return CountState(jnp.zeros((), jnp.int32)) if schedule else ()

    def update(grads, opt_state, params=None, **extra):
        need_params(params)
        decay: Any = schedule(opt_state.count) if schedule else weight_decay
        (updates,) = each_leaf(lambda p, g: (g + as_dtype(decay, g.dtype) * p,), grads, params)
        return updates, CountState(increment(opt_state.count)) if schedule else opt_state

    tx = Transform(init, update)
    return tx if mask is None else masked(tx, mask)
