"""Safe training with gradients that are not finite, and with params in narrow dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.dtypes import wide, widened
from fnn.core.origins import builder
from fnn.core.types import Dtype, Key, Tree
from fnn.optim.arithmetic import increment, rounded, spacing
from fnn.optim.transform import (
    Transform,
    check_alike,
    check_state,
    check_transform,
    need_params,
    taking_extra,
)


class SkipNonfiniteState(NamedTuple):
    """How many updates were skipped, and the state of the inner transform.

    - `notfinite_count`: how many in a row, up to the last update.
    - `last_finite`: whether the last update was made.
    - `total_notfinite`: how many in all.
    """

    notfinite_count: jax.Array
    last_finite: jax.Array
    total_notfinite: jax.Array
    inner_state: Tree


class MasterWeightsState(NamedTuple):
    """The params in float32 or wider, and the inner transform's state."""

    master: Tree
    inner_state: Tree


class StochasticRoundingState(NamedTuple):
    """The key of the next rounding, and the inner transform's state."""

    key: jax.Array
    inner_state: Tree


# --- gradients that are not finite


@builder
def skip_nonfinite(tx: Transform) -> Transform:
    """Skip updates that would not be finite: return zeros, and leave the inner state bitwise as is.

    An update is skipped if there is a NaN or an infinity in the gradients, in the updates of `tx`,
    or newly in its state (the square of a huge gradient). After any number of skipped updates, the
    next good gradient continues as if they had not happened. The counters in the state let a
    training loop give up; `tx` does not see them.

    - `tx`: the whole optimizer. Skipped gradients reach it as zeros.

    A skipped step of `fnn.train.step` also leaves the network's state (batch statistics, a carry)
    and that of transforms around this one unchanged. In your own loop, `unless_skipped` does that.

    >>> from fnn.optim import adam
    >>> tx, g = skip_nonfinite(adam(0.1)), jnp.array([1.0, jnp.nan])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(updates, state.total_notfinite)
    [0. 0.] 1
    """
    check_transform(tx)
    tx_update = taking_extra(tx.update)

    def init(params):
        in_a_row, total = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return SkipNonfiniteState(in_a_row, jnp.ones((), bool), total, tx.init(params))

    def update(grads, opt_state, params=None, **extra):
        check_state(opt_state, SkipNonfiniteState)
        checks.floating_leaves("grads", grads, or_complex=True)
        old, finite = opt_state.inner_state, all_finite(grads)
        grads = jax.tree.map(lambda g: jnp.where(finite, g, 0), grads)
        updates, new = tx_update(grads, old, params, **extra)
        good = finite & all_finite(updates) & _still_finite(old, new)
        updates = jax.tree.map(lambda u: jnp.where(good, u, 0), updates)
        inner_state = jax.tree.map(lambda a, b: jnp.where(good, b, a), old, new)
        in_a_row = jnp.where(good, 0, increment(opt_state.notfinite_count))
        total = opt_state.total_notfinite
        total = jnp.where(good, total, increment(total))
        return updates, SkipNonfiniteState(in_a_row, good, total, inner_state)

    return Transform(init, update)


def unless_skipped(before: tuple, after: tuple) -> tuple:
    """The result of a step: `after`, or bitwise `before` where `skip_nonfinite` skipped it.

    - `before`, `after`: (params, state, opt_state), before and after the step. The counters of
      `skip_nonfinite` are always those of `after`. Without a `skip_nonfinite`, the result is
      `after`. If it is a part of the optimizer, a skipped step is skipped as a whole; if the
      optimizer is `each_member(skip_nonfinite(tx))`, of an ensemble, members are skipped one by
      one.

    >>> from fnn.optim import sgd
    >>> tx, p = skip_nonfinite(sgd(0.1)), jnp.ones(1)
    >>> opt_state = tx.init(p)
    >>> _, new = tx.update(p * jnp.nan, opt_state, p)
    >>> print(unless_skipped((p, {"mean": p}, opt_state), (p, {"mean": p * jnp.nan}, new))[1])
    {'mean': Array([1.], dtype=float32)}
    """

    def is_counter(node):
        return isinstance(node, SkipNonfiniteState)

    nodes = [n for n in jax.tree.leaves(after[2], is_leaf=is_counter) if is_counter(n)]
    if not nodes:
        return after
    if is_counter(after[2]):
        finite = after[2].last_finite  # [n] in `each_member`, whose members are skipped one by one
    else:
        finite = _all(node.last_finite for node in nodes)

    def choose(old, new):
        if old is new or is_counter(new):
            return new
        whole = finite if jnp.shape(new)[: finite.ndim] == finite.shape else jnp.all(finite)
        return jnp.where(jnp.expand_dims(whole, range(whole.ndim, jnp.ndim(new))), new, old)

    return tuple(
        jax.tree.map(choose, a, b, is_leaf=is_counter) for a, b in zip(before, after, strict=True)
    )


def all_finite(tree: Tree) -> jax.Array:
    """Whether every value in every floating leaf is finite: a tree -> [], bool.

    >>> all_finite({"a": jnp.ones(2), "b": jnp.array(jnp.inf)})
    Array(False, dtype=bool)
    """
    return _all(jnp.isfinite(leaf) for leaf in jax.tree.leaves(tree) if _floats(leaf))


def _still_finite(old: Tree, new: Tree) -> jax.Array:
    """Whether everything that was finite still is."""
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    return _all(jnp.isfinite(b) | ~jnp.isfinite(a) for a, b in pairs if _floats(a))


def _all(conditions: Iterable[jax.Array]) -> jax.Array:
    every = jnp.ones((), bool)
    for condition in conditions:
        every &= jnp.all(condition)
    return every


def _floats(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


# --- narrow params


@builder
def master_weights(tx: Transform) -> Transform:
    """Training in float32 of params in a narrower dtype.

        P_t = P_{t-1} + tx(g_t; P_{t-1})        p_t = round(P_t)

    A step below half the spacing of bfloat16 numbers, 0.4 percent of a parameter, would be rounded
    away; the master weights P in the state accumulate such steps.

    - `tx`: the whole optimizer; it sees gradients and params in float32 or wider.

    Updates of narrow params are float32, since p_t - p_{t-1} may not be a bfloat16 number: p_{t-1}
    + u, computed in float32 as `apply_updates` does, is p_t (unless that is less than 2^-16 of
    p_{t-1}, where float32 rounds too). Params of 32 or 64 bits are their own masters. Micikevicius
    et al. (2018), section 3.1.

    >>> from fnn.optim import apply_updates, sgd
    >>> tx, p = master_weights(sgd(1e-3)), jnp.ones(1, jnp.bfloat16)
    >>> opt_state = tx.init(p)
    >>> for _ in range(10):
    ...     updates, opt_state = tx.update(jnp.ones(1, jnp.bfloat16), opt_state, p)
    ...     p = apply_updates(p, updates)
    >>> print(p)
    [0.988281]
    """
    check_transform(tx)
    tx_update = taking_extra(tx.update)

    def init(params):
        checks.floating_leaves("params", params)
        master = jax.tree.map(lambda p: widened(p) if _narrow(p) else None, params)
        return MasterWeightsState(master, tx.init(_masters(master, params)))

    def update(grads, opt_state, params=None, **extra):
        check_state(opt_state, MasterWeightsState)
        need_params(params)
        check_alike("grads", grads, "params", params)
        masters = _masters(opt_state.master, params)
        extra = _wide_extra(extra, grads, params)
        steps, state = tx_update(
            jax.tree.map(widened, grads), opt_state.inner_state, masters, **extra
        )
        master = jax.tree.map(lambda p, w, u: w + u if _narrow(p) else None, params, masters, steps)

        def lead(p, u, w):
            return rounded(w, p.dtype) - p.astype(w.dtype) if _narrow(p) else u

        updates = jax.tree.map(lead, params, steps, _masters(master, params))
        return updates, MasterWeightsState(master, state)

    return Transform(init, update)


@builder
def stochastic_rounding(tx: Transform, key: Key) -> Transform:
    """Narrow params rounded up or down at random, so that rounding has mean zero.

    p + u, computed in float32, lies between two numbers a and b of the params' dtype; the new
    parameter is b with probability (p + u - a) / (b - a), so its mean is p + u. Small steps count,
    as with `master_weights`, but at no cost in memory.

    - `tx`: the whole optimizer; it sees gradients and params in float32 or wider.
    - `key`: the source of all rounding. It goes into the state and is split at each update.

    Updates of narrow params are float32, so that adding them gives the rounded number. Derivatives
    are those of p + u. Leaves draw by their position in the tree. Gupta et al. (2015), section 3.

    >>> from fnn.optim import apply_updates, sgd
    >>> tx, p = stochastic_rounding(sgd(1e-3), jax.random.key(0)), jnp.ones(1000, jnp.bfloat16)
    >>> updates, _ = tx.update(p, tx.init(p), p)
    >>> p = apply_updates(p, updates)
    >>> print(jnp.unique(p), bool(abs(p.astype(jnp.float32).mean() - 0.999) < 2e-4))
    [0.996094 1] True
    """
    check_transform(tx)
    key = checks.typed_key(key)
    tx_update = taking_extra(tx.update)

    def init(params):
        checks.floating_leaves("params", params)
        wider = jax.tree.map(widened, params)
        return StochasticRoundingState(jax.random.clone(key), tx.init(wider))

    def update(grads, opt_state, params=None, **extra):
        check_state(opt_state, StochasticRoundingState)
        need_params(params)
        check_alike("grads", grads, "params", params)
        kept, drawn = jax.random.split(opt_state.key)
        keys = iter(jax.random.split(drawn, max(len(jax.tree.leaves(grads)), 1)))  # one a leaf
        extra = _wide_extra(extra, grads, params)
        wider, wide_grads = (jax.tree.map(widened, tree) for tree in (params, grads))
        steps, state = tx_update(wide_grads, opt_state.inner_state, wider, **extra)

        def rounded(p, w, u):
            key = next(keys)
            if not _narrow(p):
                return u
            return u + _random_rounding(key, jax.lax.stop_gradient(w + u), p.dtype)

        return jax.tree.map(rounded, params, wider, steps), StochasticRoundingState(kept, state)

    return Transform(init, update)


def _random_rounding(key: Key, x: jax.Array, dtype: Dtype) -> jax.Array:
    """The step from x to one of its two neighbours in a narrow dtype; its mean is zero."""
    step = spacing(x, dtype)
    share = x / step - jnp.floor(x / step)
    up = jax.random.uniform(key, x.shape, x.dtype) < share
    return jnp.where(jnp.isfinite(share), (up.astype(x.dtype) - share) * step, 0)


def _narrow(p: Any) -> bool:
    return wide(jnp.result_type(p)) != jnp.result_type(p)


def _masters(master: Tree, params: Tree) -> Tree:
    """The master weights; params that are their own stand for themselves."""
    return jax.tree.map(lambda p, w: p if w is None else w, params, master)


def _wide_extra(extra: dict, grads: Tree, params: Tree) -> dict:
    """The extra arguments for a transform of wide trees: `grad` and `value_fn` of wide params."""
    extra = dict(extra)
    if "grad" in extra and jax.tree.structure(extra["grad"]) == jax.tree.structure(grads):
        extra["grad"] = jax.tree.map(widened, extra["grad"])
    value_fn: Callable | None = extra.get("value_fn")
    if value_fn is not None:

        def of_wide(wider):
            dtyped = jax.tree.map(lambda p, w: w.astype(jnp.result_type(p)), params, wider)
            return value_fn(dtyped)

        extra["value_fn"] = of_wide
    return extra
