"""Averages of updates and of params."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import wide, widened, widest
from fnn.core.origins import builder
from fnn.core.types import Dtype, Scalar, Tree
from fnn.optim.arithmetic import as_dtype, average, corrected, correction, increment, rounded
from fnn.optim.members import plain
from fnn.optim.transform import (
    Transform,
    check_alike,
    check_state,
    check_transform,
    each_leaf,
    kept_in,
    leafwise,
    need_params,
    taking_extra,
)


class EmaState(NamedTuple):
    """The number of updates and their average, float32 or wider."""

    count: jax.Array
    ema: Tree


class AverageState(NamedTuple):
    """The number of updates and the average of the params after each, float32 or wider."""

    count: jax.Array
    average: Tree


class LookaheadState(NamedTuple):
    """The state of the fast optimizer, its steps since the last synchronization, the slow weights.

    The slow weights are float32 or wider.
    """

    fast_state: Tree
    steps_since_sync: jax.Array
    slow: Tree


@builder
def ema(decay: Scalar, debias: bool = True, accumulator_dtype: Dtype = None) -> Transform:
    """The exponential moving average of the updates.

        m_t = decay m_{t-1} + (1 - decay) g_t        u_t = m_t / (1 - decay^t)

    - `decay`: the weight of the old average, in [0, 1).
    - `debias`: False leaves out the correction for the start at zero, u_t = m_t.
    - `accumulator_dtype`: the dtype of m between updates; None is float32 or wider.

    To average params instead of updates, use `average_params`. Kingma & Ba (2015), section 3.

    >>> tx = ema(0.5)
    >>> g = jnp.ones(1)
    >>> print(tx.update(g, tx.init(g))[0])
    [1.]
    """
    checks.number("decay", decay, 0.0, 1.0, open_high=True)

    keep = kept_in("accumulator_dtype", accumulator_dtype)

    def rule(t, p, g, m):
        m = average(decay, m, g)
        return (corrected(m, decay, t) if debias else m), keep(m)

    return leafwise(EmaState, rule, lambda p: (keep(jnp.zeros_like(p)),))


@builder
def average_params(decay: Scalar | None = None, start: Scalar = 0) -> Transform:
    """The average of the params after each update; the updates pass unchanged.

        a_t = a_{t-1} + w_t (p_t - a_{t-1})        w_t = 1 / t, or (1 - decay) / (1 - decay^t)

    This is the mean of p_1 to p_t, or their moving average corrected for its start. Put it last in
    a chain, since p_t is p_{t-1} plus the updates that come out here. `averaged_params` reads it.

    - `decay`: the weight of the old average, in [0, 1); None weighs all alike.
    - `start`: updates before the average begins, at least 0; until then it is p_t.

    Polyak & Juditsky (1992).

    >>> from fnn.optim import apply_updates, chain, sgd
    >>> tx, p = chain(sgd(1.0), average_params()), jnp.zeros(1)
    >>> opt_state = tx.init(p)
    >>> for _ in range(3):
    ...     updates, opt_state = tx.update(jnp.ones(1), opt_state, p)
    ...     p = apply_updates(p, updates)
    >>> print(p, averaged_params(opt_state, p))
    [-3.] [-2.]
    """
    if decay is not None:
        checks.number("decay", decay, 0.0, 1.0, open_high=True)
    checks.number("start", start, 0, float("inf"))

    def rule(t, _, p, a):
        t = jnp.maximum(t - as_dtype(start, t.dtype), 1)
        w = 1 / t if decay is None else (1 - as_dtype(decay, t.dtype)) * correction(decay, t)
        return p, a + as_dtype(w, p.dtype) * (p - a)

    inner = leafwise(AverageState, rule, start=lambda p: (jnp.copy(p),))

    def update(grads, opt_state, params=None, **extra):
        need_params(params)
        check_alike("grads", grads, "params", params)
        _, opt_state = inner.update(jax.tree.map(_sum, params, grads), opt_state)
        return grads, opt_state

    return Transform(inner.init, update)


def _sum(p: Any, u: Any) -> jax.Array:
    """The new parameter, rounded as `apply_updates` rounds it, in float32 or wider."""
    p, u = jnp.asarray(p), jnp.asarray(u)
    dtype = wide(widest(p.dtype, u.dtype))
    total = p.astype(dtype) + u.astype(dtype)
    return rounded(total, p.dtype) if wide(p.dtype) != p.dtype else total.astype(wide(p.dtype))


@builder
def lookahead(tx: Transform, sync_period: Scalar = 5, slow_step_size: Scalar = 0.5) -> Transform:
    """k steps of a fast optimizer, then a step of the slow weights towards the result.

        theta_{t,i} = theta_{t,i-1} + tx(...), i = 1 ... k, from theta_{t,0} = phi_{t-1}
        phi_t = phi_{t-1} + alpha (theta_{t,k} - phi_{t-1})

    The params are the fast weights theta; every k-th update moves them back to phi. The state keeps
    the slow weights in float32 or wider; `averaged_params` reads them.

    - `tx`: the fast optimizer. Synchronization does not reset its state.
    - `sync_period`: k, at least 1; the paper's is 5.
    - `slow_step_size`: alpha, in [0, 1]; the paper's is 0.5.

    Zhang et al. (2019), algorithm 1.

    >>> from fnn.optim import sgd
    >>> tx, p = lookahead(sgd(1.0), sync_period=1), jnp.zeros(1)
    >>> print(tx.update(jnp.ones(1), tx.init(p), p)[0])
    [-0.5]
    """
    check_transform(tx)
    if not isinstance(sync_period, jax.core.Tracer):
        sync_period = checks.count("sync_period", sync_period)
    checks.number("slow_step_size", slow_step_size, 0.0, 1.0)
    tx_update = taking_extra(tx.update)

    def init(params):
        slow = jax.tree.map(lambda p: jnp.copy(widened(p)), params)
        return LookaheadState(tx.init(params), jnp.zeros((), jnp.int32), slow)

    def update(grads, opt_state, params=None, **extra):
        check_state(opt_state, LookaheadState)
        need_params(params)
        updates, fast_state = tx_update(grads, opt_state.fast_state, params, **extra)
        steps = increment(opt_state.steps_since_sync)
        sync = steps >= as_dtype(sync_period, steps.dtype)

        def rule(theta, u, phi):
            ahead = phi + as_dtype(slow_step_size, u.dtype) * (theta + u - phi)
            return jnp.where(sync, ahead - theta, u), jnp.where(sync, ahead, phi)

        updates, slow = each_leaf(rule, updates, params, (opt_state.slow,))
        return updates, LookaheadState(fast_state, jnp.where(sync, 0, steps), slow)

    return Transform(init, update)


@errors.named
def averaged_params(opt_state: Tree, params: Tree) -> Tree:
    """The average that `average_params` or `lookahead` keeps in an optimizer's state, like params.

    - `opt_state`: that of the whole optimizer; the average is found in it.
    - `params`: they give the dtypes, and the leaves that are not averaged (see `masked`).

    Raises ParamsError if there is not exactly one.

    >>> from fnn.optim import chain, sgd
    >>> tx = chain(sgd(0.1), average_params())
    >>> print(averaged_params(tx.init(jnp.ones(2)), jnp.zeros(2)))
    [1. 1.]
    """
    kinds = (AverageState, LookaheadState)
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    found = [node for node in leaves if isinstance(node, kinds)]
    if len(found) != 1:
        raise errors.ParamsError(
            "the state of one average_params or lookahead",
            f"{len(found)}",
            "pass the opt_state of an optimizer that has one, or the part of it that does",
        )
    (node,) = found
    mean = plain(node.average if isinstance(node, AverageState) else node.slow)
    return _like_params(mean, params)


def _like_params(part: Tree, params: Tree) -> Tree:
    """The leaves of `part` in the dtypes of params, or those of params where it has None."""

    def one(a, p):
        return p if a is None else a.astype(jnp.result_type(p))

    try:
        return jax.tree.map(one, part, params, is_leaf=lambda node: node is None)
    except ValueError:
        raise errors.ParamsError(
            f"params like the average, {jax.tree.structure(part)}",
            f"{jax.tree.structure(params)}",
            "pass the params of this optimizer",
        ) from None
