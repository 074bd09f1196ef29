"""L-BFGS, and a line search for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import widened, widest
from fnn.core.lengths import as_length, length_of, product, scaled, shortened
from fnn.core.origins import builder
from fnn.core.types import Scalar, Schedule, Tree
from fnn.optim.arithmetic import as_dtype, increment, norm, tree_dtype
from fnn.optim.transform import (
    Transform,
    apply_updates,
    chain,
    check_alike,
    check_state,
    need_params,
    scale_by_learning_rate,
    zeros_like,
)


class ScaleByLBFGSState(NamedTuple):
    """The last params and gradients, and the latest pairs of differences, oldest first.

    Unused pairs have weight 0.
    """

    count: jax.Array
    params: Tree
    updates: Tree
    diff_params_memory: Tree
    diff_updates_memory: Tree
    weights_memory: jax.Array


class WolfeState(NamedTuple):
    """The line search's last step size; 0 before the first."""

    learning_rate: jax.Array


@builder
def scale_by_lbfgs(memory_size: int = 10, scale_init_precond: bool = True) -> Transform:
    """The gradient times an approximation H of the inverse Hessian, from its latest changes.

        s_k = x_{k+1} - x_k        y_k = g_{k+1} - g_k        rho_k = 1 / <s_k, y_k>
        V_k = I - rho_k y_k s_k^T
        H = V_k^T H V_k + rho_k s_k s_k^T    over the latest pairs, from gamma I, oldest first
        u = H g

    with gamma = <s, y> / <y, y> of the latest pair, and min(1, 1 / |g|) before there is one.

    - `memory_size`: the number of pairs kept; each costs two copies of the params.
    - `scale_init_precond`: False starts from gamma = 1.

    All leaves form one vector. A pair without positive curvature, <s, y> > eps |s| |y|, is left
    out, so H stays positive and -u leads downhill. After a step of length zero, as when a line
    search fails, all pairs are dropped. Nocedal & Wright (2006), algorithm 7.4.

    >>> tx = scale_by_lbfgs()
    >>> x = jnp.array([1.0, 1.0])
    >>> _, opt_state = tx.update(jnp.array([2.0, 8.0]), tx.init(x), x)
    >>> x = jnp.array([1.0, 0.0])
    >>> print(tx.update(jnp.array([2.0, 0.0]), opt_state, x)[0])  # 1 / 8 of it, from y = 8 s
    [0.25 0.  ]
    """
    checks.count("memory_size", memory_size)

    def init(params):
        x, g = zeros_like(params, or_complex=True), zeros_like(params, or_complex=True)

        def memory(a):
            return jnp.zeros((memory_size, *a.shape), a.dtype)

        s, y = (jax.tree.map(memory, x) for _ in range(2))
        rho = jnp.zeros(memory_size, tree_dtype(params))
        return ScaleByLBFGSState(jnp.zeros((), jnp.int32), x, g, s, y, rho)

    def update(grads, opt_state, params=None, **extra):
        need_params(params)
        check_state(opt_state, ScaleByLBFGSState)
        check_alike("grads", grads, "the optimizer's state", opt_state.updates)
        check_alike("params", params, "the optimizer's state", opt_state.params)
        count, last_x, last_g, s_memory, y_memory, rho = opt_state
        x, g = _like(params, last_x), _like(grads, last_g)
        s, y = jax.tree.map(jnp.subtract, x, last_x), jax.tree.map(jnp.subtract, g, last_g)

        sy, of_s, of_y = _dot(s, y), norm(*jax.tree.leaves(s)), norm(*jax.tree.leaves(y))
        curved = (count > 0) & (sy > jnp.finfo(sy.dtype).eps * of_s * of_y)
        rho = jnp.where((of_s > 0) | (count == 0), rho, 0)

        def push(memory, new):  # drops the oldest
            return jnp.where(curved, jnp.concatenate([memory[1:], new[None]]), memory)

        s_memory, y_memory = (jax.tree.map(push, *of) for of in ((s_memory, s), (y_memory, y)))
        rho = push(rho, 1 / jnp.where(curved, sy, 1))

        one, of_g = as_length(jnp.ones((), rho.dtype)), length_of(*jax.tree.leaves(g))
        newest = length_of(*(memory[-1] for memory in jax.tree.leaves(y_memory)))
        by_rho = product(as_length(rho[-1]), newest)

        def first(q):  # gamma q
            if not scale_init_precond:
                return q
            return jnp.where(
                rho[-1] > 0, scaled(scaled(q, one, newest), one, by_rho), shortened(q, one, of_g)
            )

        pairs = s_memory, y_memory, rho
        q, alphas = jax.lax.scan(_backward, g, pairs, reverse=True)
        u, _ = jax.lax.scan(
            _forward, jax.tree.map(lambda q: first(widened(q)), q), (*pairs, alphas)
        )
        return _like(u, grads), ScaleByLBFGSState(increment(count), x, g, *pairs)

    return Transform(init, update)


def _backward(q: Tree, pair: tuple) -> tuple[Tree, jax.Array]:
    s, y, rho = pair
    alpha = rho * _dot(s, q)
    return _plus(q, -alpha, y), alpha


def _forward(u: Tree, pair: tuple) -> tuple[Tree, None]:
    s, y, rho, alpha = pair
    return _plus(u, alpha - rho * _dot(y, u), s), None


@builder
def scale_by_wolfe_linesearch(
    max_steps: int = 25, c1: Scalar = 1e-4, c2: Scalar = 0.9
) -> Transform:
    """Updates times a step t at which the value has fallen enough and its slope is nearly flat.

        f(x + t u) <= f(x) + c1 t <g, u>        |<grad f(x + t u), u>| <= c2 |<g, u>|

    from t = 1, doubling while the slope is still too steep, then halving the bracket, which
    contains such a step. Where rounding hides the decrease of f, its slope decides (Hager & Zhang
    2005, equation 4).

    - `max_steps`: trials, each one value and gradient; after the last, the largest t that lowered f
      enough is taken, or 0.
    - `c1`, `c2`: 0 < c1 < c2 < 1; the defaults are for quasi-Newton directions.

    Put it last in a chain, where u leads downhill. `update` needs params and value_fn, a function
    of the params alone; passing value and grad at params saves computing them. The step is a sum of
    powers of two and does not change with small changes of its inputs, so all derivatives treat it
    as a constant and are exact where they exist. Raises InputError
    without value_fn. Nocedal & Wright (2006), equations 3.7.

    >>> tx = scale_by_wolfe_linesearch()
    >>> x = jnp.array([3.0])
    >>> u, _ = tx.update(jnp.array([-48.0]), tx.init(x), x, value_fn=lambda x: jnp.sum(x**2))
    >>> print(u)
    [-3.]
    """
    checks.count("max_steps", max_steps)
    checks.number("c1", c1, 0.0, 1.0)
    checks.number("c2", c2, 0.0, 1.0)

    def init(params):
        checks.floating_leaves("params", params, or_complex=True)
        return WolfeState(jnp.zeros((), tree_dtype(params)))

    def update(grads, opt_state, params=None, *, value=None, grad=None, value_fn=None, **extra):
        need_params(params)
        check_state(opt_state, WolfeState)
        check_alike("grads", grads, "params", params)
        dtype = opt_state.learning_rate.dtype
        at = jax.value_and_grad(_scalar(value_fn))
        x, u = jax.lax.stop_gradient((params, grads))

        def along(t):
            value, grad = at(apply_updates(x, _times(t, u)))
            return value.astype(dtype), _dot(_ascent(grad), u).astype(dtype)

        if value is None or grad is None:
            value, slope = along(jnp.zeros((), dtype))
        else:
            check_alike("grad", grad, "params", params)
            value, grad = jax.lax.stop_gradient((value, grad))
            value, slope = as_dtype(value, dtype), _dot(grad, u).astype(dtype)
        armijo, flat = as_dtype(c1, dtype), as_dtype(c2, dtype)
        noise = jnp.finfo(dtype).eps ** (2 / 3) * jnp.abs(value)  # rounding of sums that cancel

        def searching(carry):
            i, _, _, _, found = carry
            return ~found & (i < max_steps)

        def trial(carry):
            i, t, low, high, _ = carry
            value_t, slope_t = along(t)
            falls = value_t <= value + armijo * t * slope
            hidden = jnp.abs(value_t - value) <= noise
            falls |= hidden & (slope_t <= (2 * armijo - 1) * slope)
            found = falls & (jnp.abs(slope_t) <= flat * jnp.abs(slope))
            short = falls & (slope_t <= 0) & ~found  # NaN is never short: the bracket shrinks
            low, high = jnp.where(short, t, low), jnp.where(short | found, high, t)
            beyond = jnp.where(jnp.isfinite(high), (low + high) / 2, 2 * t)
            return i + 1, jnp.where(found, t, beyond), low, high, found

        zero, infinite = jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype)
        start = jnp.zeros((), jnp.int32), zero + 1, zero, infinite, jnp.zeros((), bool)
        _, t, low, _, found = jax.lax.while_loop(searching, trial, start)
        t = jnp.where(found, t, low)
        return _like(_times(t, grads), grads), WolfeState(t)

    return Transform(init, update)


@builder
def lbfgs(
    learning_rate: Scalar | Schedule | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    max_linesearch_steps: int = 25,
) -> Transform:
    """L-BFGS: x = x - t H g, see `scale_by_lbfgs`, for gradients without noise.

    - `learning_rate`: t, a number or a schedule; None searches t along each direction, see
      `scale_by_wolfe_linesearch`, and then `update` needs value_fn (and takes value and grad):
      `tx.update(grads, opt_state, params, value=value, grad=grads, value_fn=value_fn)`.
      In optax's chain, use optax.GradientTransformationExtraArgs(*lbfgs()), the only type to which
      it passes extra arguments.
    - `memory_size`, `scale_init_precond`: see `scale_by_lbfgs`.
    - `max_linesearch_steps`: trials of one search.

    Liu & Nocedal (1989).

    >>> tx, x = lbfgs(), jnp.array([1.0, 2.0, 3.0])
    >>> f, opt_state = lambda x: jnp.sum(x**2), tx.init(x)
    >>> for _ in range(2):
    ...     updates, opt_state = tx.update(jax.grad(f)(x), opt_state, x, value_fn=f)
    ...     x = apply_updates(x, updates)
    >>> bool(f(x) < 1e-10)
    True
    """
    direction = scale_by_lbfgs(memory_size, scale_init_precond)
    if learning_rate is not None:
        return chain(direction, scale_by_learning_rate(learning_rate))
    search = scale_by_wolfe_linesearch(max_linesearch_steps)
    return chain(direction, scale_by_learning_rate(1.0), search)


def _scalar(value_fn: Any) -> Callable:
    """value_fn, checked: a function of params that gives one number."""
    if not callable(value_fn):
        raise errors.InputError(
            "value_fn, a function of the params",
            f"value_fn {errors.show(value_fn)}",
            "pass it, as tx.update(grads, opt_state, params, value_fn=lambda p: loss(p, batch))",
        )

    def checked(params):
        value: Any = value_fn(params)
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise errors.ShapeError(
                "value_fn to return one floating number", errors.show(value), "return the loss"
            )
        return value

    return checked


# --- trees as vectors


def _dot(a: Tree, b: Tree) -> jax.Array:
    """<a, b> over all leaves, complex ones as pairs of reals, in their widest dtype."""
    dtype = tree_dtype((a, b))

    def one(a, b):
        a, b = (x.astype(widest(x.dtype, dtype)) for x in (a, b))
        return jnp.vdot(a, b, precision=jax.lax.Precision.HIGHEST).real

    return sum(jax.tree.leaves(jax.tree.map(one, a, b)), jnp.zeros((), dtype))


def _ascent(grad: Tree) -> Tree:
    """The direction of ascent from what `jax.grad` gives, its conjugate: see `transform`."""
    return jax.tree.map(jnp.conj, grad)


def _plus(a: Tree, t: jax.Array, b: Tree) -> Tree:
    return jax.tree.map(lambda a, b: a + t.astype(a.dtype) * b, a, b)


def _times(t: jax.Array, a: Tree) -> Tree:
    return jax.tree.map(lambda a: t.astype(widened(a).dtype) * widened(a), a)


def _like(tree: Tree, like: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.asarray(a).astype(jnp.result_type(b)), tree, like)
