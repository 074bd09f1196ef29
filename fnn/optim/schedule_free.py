"""Schedule-free learning: averaging instead of a decaying learning rate."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import wide
from fnn.core.origins import builder
from fnn.core.types import Dtype, Scalar, Schedule, Tree
from fnn.optim.arithmetic import (
    as_dtype,
    average,
    correction,
    divide,
    increment,
    over_root,
    tree_dtype,
)
from fnn.optim.decay import add_decayed_weights
from fnn.optim.members import plain
from fnn.optim.transform import (
    Transform,
    chain,
    check_alike,
    check_state,
    check_transform,
    leafwise,
    need_params,
    scale_by_learning_rate,
    taking_extra,
)


class ScheduleFreeState(NamedTuple):
    """The number of updates, the sum of weights, and the two sequences, float32 or wider."""

    count: jax.Array
    weight_sum: jax.Array
    max_lr: jax.Array
    base_optimizer_state: Tree
    z: Tree
    x: Tree


class SecondMomentState(NamedTuple):
    """The number of updates and the second moment of the gradient, float32 or wider."""

    count: jax.Array
    nu: Tree


@builder
def schedule_free(
    base_optimizer: Transform,
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    weight_lr_power: Scalar = 2.0,
) -> Transform:
    """An optimizer without momentum, made schedule-free: gradients are taken at y, not at x or z.

        z_{t+1} = z_t + u_t(y_t)                   the base optimizer's update
        w_t = max(gamma_1, ..., gamma_t)^power     c_{t+1} = w_t / (w_1 + ... + w_t)
        x_{t+1} = (1 - c_{t+1}) x_t + c_{t+1} z_{t+1}
        y_{t+1} = (1 - b1) z_{t+1} + b1 x_{t+1}

    The params are y; evaluate at x, which `schedule_free_eval_params` gives.

    - `base_optimizer`: a whole optimizer with this learning rate, and no momentum of its own.
    - `learning_rate`: gamma, a number or a schedule, the same as the base's: it weighs the average.
      A warm-up helps, a decay is not needed. Steps with gamma = 0 do not count.
    - `b1`: the share of the average in y, in [0, 1]; 0 is the base optimizer with averaging.
    - `weight_lr_power`: 2 weighs by gamma^2, 0 all alike.

    The state keeps x and z in float32 or wider, so that an average of bfloat16 params keeps what
    each step adds; the base works in that dtype. Defazio et al. (2024), "The road less scheduled",
    equations 3 to 5 and algorithm 1.

    >>> from fnn.optim import sgd
    >>> tx = schedule_free(sgd(0.5), 0.5)
    >>> y = jnp.ones(1)
    >>> updates, opt_state = tx.update(y, tx.init(y), y)
    >>> print(updates, schedule_free_eval_params(opt_state, y))
    [-0.5] [0.5]
    """
    check_transform(base_optimizer)
    check_rate(learning_rate)
    checks.number("b1", b1, 0.0, 1.0)
    checks.number("weight_lr_power", weight_lr_power, 0.0, float("inf"))
    base_update = taking_extra(base_optimizer.update)

    def init(params):
        checks.floating_leaves("params", params)
        z, x = (_widened(params) for _ in range(2))  # two buffers: both may be donated
        total, largest = (jnp.zeros((), tree_dtype(params)) for _ in range(2))
        start = base_optimizer.init(_widened(params))
        return ScheduleFreeState(jnp.zeros((), jnp.int32), total, largest, start, z, x)

    def update(grads, opt_state, params=None, **extra):
        need_params(params)
        check_state(opt_state, ScheduleFreeState)
        check_alike("grads", grads, "params", params)
        check_alike("params", params, "the optimizer's state", opt_state.z)
        count, weight_sum, max_lr, base_state, z, x = opt_state
        u, base_state = base_update(_widened(grads), base_state, _widened(params), **extra)

        max_lr = jnp.maximum(max_lr, rate_at(learning_rate, count, max_lr.dtype))
        weight = max_lr ** as_dtype(weight_lr_power, max_lr.dtype)
        weight_sum = weight_sum + weight
        c = divide(weight, weight_sum)

        z = jax.tree.map(lambda z, u: z + u.astype(z.dtype), z, u)
        x = jax.tree.map(lambda x, z: x + as_dtype(c, x.dtype) * (z - x), x, z)

        def step(g, p, z, x):
            y = z + as_dtype(b1, z.dtype) * (x - z)
            return (y - jnp.asarray(p).astype(y.dtype)).astype(jnp.result_type(g))

        state = ScheduleFreeState(increment(count), weight_sum, max_lr, base_state, z, x)
        return jax.tree.map(step, grads, params, z, x), state

    return Transform(init, update)


@errors.named
def schedule_free_eval_params(opt_state: Tree, params: Tree) -> Tree:
    """The params to evaluate a schedule-free run at: the average x, in the dtypes of params.

    - `opt_state`: the state of `schedule_free`, or of a chain or wrapper that holds one.
    - `params`: those of the run, y.

    Raises ParamsError unless opt_state has exactly one such state.

    >>> tx = schedule_free_sgd(0.5)
    >>> p = {"w": jnp.ones(2)}
    >>> print(schedule_free_eval_params(tx.init(p), p)["w"])
    [1. 1.]
    """

    def ours(state):
        return isinstance(state, ScheduleFreeState)

    found = [s for s in jax.tree.leaves(opt_state, is_leaf=ours) if ours(s)]
    if len(found) != 1:
        raise errors.ParamsError(
            "opt_state with one state of schedule_free",
            f"{len(found)}",
            "pass the state that tx.update returned",
        )
    x = plain(found[0].x)
    check_alike("params", params, "the optimizer's state", x)
    return jax.tree.map(lambda x, p: x.astype(jnp.result_type(p)), x, params)


@builder
def schedule_free_sgd(
    learning_rate: Scalar | Schedule = 1.0,
    warmup_steps: Scalar = 0,
    b1: Scalar = 0.9,
    weight_decay: Scalar | Schedule = 0.0,
    weight_lr_power: Scalar = 2.0,
) -> Transform:
    """Schedule-free gradient descent: z = z - gamma_t (g + weight_decay y), see `schedule_free`.

    - `learning_rate`: gamma, a number or a schedule.
    - `warmup_steps`: gamma_t = gamma min(1, t / warmup_steps); 0 for none.
    - `b1`, `weight_lr_power`: see `schedule_free`.
    - `weight_decay`: decoupled, at y.

    >>> tx = schedule_free_sgd(0.1, warmup_steps=10)
    >>> y = jnp.ones(1)
    >>> print(tx.update(y, tx.init(y), y)[0].round(4))
    [-0.01]
    """
    rate = _warmed(learning_rate, warmup_steps)
    base = chain(add_decayed_weights(weight_decay), scale_by_learning_rate(rate))
    return schedule_free(base, rate, b1, weight_lr_power)


@builder
def schedule_free_adamw(
    learning_rate: Scalar | Schedule = 0.0025,
    warmup_steps: Scalar = 0,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar | Schedule = 0.0,
    weight_lr_power: Scalar = 2.0,
) -> Transform:
    """Schedule-free AdamW: z = z - gamma_t (g / (sqrt(vhat) + eps) + weight_decay y).

    - `learning_rate`: gamma, a number or a schedule; the default is the authors'.
    - `warmup_steps`: gamma_t = gamma min(1, t / warmup_steps); 0 for none.
    - `b1`, `weight_lr_power`: see `schedule_free`; b1 replaces Adam's momentum.
    - `b2`, `eps`: see `scale_by_adam`.
    - `weight_decay`: decoupled, at y.

    Defazio et al. (2024), algorithm 1.

    >>> tx = schedule_free_adamw(0.5)
    >>> y = jnp.ones(1)
    >>> print(tx.update(y, tx.init(y), y)[0])
    [-0.5]
    """
    rate = _warmed(learning_rate, warmup_steps)
    base = chain(
        _scale_by_second_moment(b2, eps),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(rate),
    )
    return schedule_free(base, rate, b1, weight_lr_power)


def _scale_by_second_moment(b2: Scalar, eps: Scalar) -> Transform:
    """Adam without a first moment, or the memory for it."""
    checks.number("b2", b2, 0.0, 1.0, open_high=True)
    checks.number("eps", eps, 0.0, float("inf"))

    def rule(t, p, g, v):
        v = average(b2, v, g**2)
        return over_root(g, v * correction(b2, t), eps), v

    return leafwise(SecondMomentState, rule)


def _warmed(learning_rate: Scalar | Schedule, warmup_steps: Scalar) -> Schedule:
    """The learning rate as a schedule with a warm-up."""
    check_rate(learning_rate)
    checks.number("warmup_steps", warmup_steps, 0.0, float("inf"))

    def schedule(count):
        dtype = jnp.result_type(float)
        steps = jnp.maximum(as_dtype(warmup_steps, dtype), 1)
        rise = jnp.minimum(1, increment(count).astype(dtype) / steps)
        return rate_at(learning_rate, count, dtype) * rise

    return schedule


# --- shared with Prodigy


def check_rate(learning_rate: Scalar | Schedule) -> None:
    if not callable(learning_rate):
        checks.number("learning_rate", learning_rate, 0.0, float("inf"))


def rate_at(learning_rate: Scalar | Schedule, count: jax.Array, dtype: Dtype) -> jax.Array:
    """The learning rate, or the schedule's at this count."""
    return as_dtype(learning_rate(count) if callable(learning_rate) else learning_rate, dtype)


def _widened(tree: Tree) -> Any:
    return jax.tree.map(lambda a: jnp.array(a, wide(jnp.result_type(a))), tree)
