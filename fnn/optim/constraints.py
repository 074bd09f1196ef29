"""Projections: after each update, params are the nearest ones that satisfy a constraint."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import real_part
from fnn.core.lengths import as_length, length_over, shortened
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.optim.arithmetic import as_dtype
from fnn.optim.members import refuse_undeclared
from fnn.optim.transform import Transform, each_leaf, need_params


@builder
def project(onto: Callable) -> Transform:
    """Updates that lead to the nearest feasible params: u = onto(p + u) - p.

    Put it last in a chain; `masked` restricts it to some leaves. p + u is feasible up to rounding,
    and exactly where onto(p + u) is zero, so `non_negative` leaves nothing below zero.

    - `onto`: a function of one leaf: `non_negative`, `box`, `l2_ball`, `simplex` or your own.

    `update` raises DtypeError for complex params where onto needs an order: all but `l2_ball`.

    >>> from fnn.optim import apply_updates, chain, sgd
    >>> tx = chain(sgd(1.0), project(box(0.0, 1.0)))
    >>> p = jnp.array([0.5, 0.5])
    >>> updates, _ = tx.update(jnp.array([2.0, 0.25]), tx.init(p), p)
    >>> print(apply_updates(p, updates))
    [0.   0.25]
    """
    checks.function("onto", onto, "one array")
    whole = onto is not non_negative and "_each_value" not in getattr(onto, "__dict__", {})

    def update(grads, opt_state, params=None, **extra):
        need_params(params)
        refuse_undeclared(grads, project, whole, False)
        (updates,) = each_leaf(lambda p, u: (onto(p + u) - p,), grads, params)
        return updates, opt_state

    return Transform(lambda params: (), update)


def non_negative(x: jax.Array) -> jax.Array:
    """The nearest point without values below zero.

    >>> print(non_negative(jnp.array([-1.0, 2.0])))
    [0. 2.]
    """
    checks.real("x", x)
    return jnp.maximum(x, 0)


@builder
def box(lower: Scalar, upper: Scalar) -> Callable[[jax.Array], jax.Array]:
    """The nearest point of the box [lower, upper].

    - `lower`, `upper`: numbers, the same for all values; infinite means no bound.

    Raises OptionError for lower above upper.

    >>> print(box(0.0, 1.0)(jnp.array([-1.0, 0.5, 2.0])))
    [0.  0.5 1. ]
    """
    checks.number("lower", lower, float("-inf"), float("inf"))
    checks.number("upper", upper, float("-inf"), float("inf"))
    known = not any(isinstance(bound, jax.core.Tracer) for bound in (lower, upper))
    if known and float(lower) > float(upper):
        raise errors.OptionError(
            f"lower at most upper={float(upper)}", f"lower={float(lower)}", "swap them"
        )

    def onto(x):
        checks.real("x", x)
        return jnp.clip(x, as_dtype(lower, x.dtype), as_dtype(upper, x.dtype))

    vars(onto)["_each_value"] = True  # treats values one by one, so stacks do not matter
    return onto


@builder
def l2_ball(
    radius: Scalar, axis: int | tuple[int, ...] | None = None
) -> Callable[[jax.Array], jax.Array]:
    """The nearest point of norm radius or less: x min(1, radius / |x|).

    - `radius`: at least 0.
    - `axis`: the axes of the norm, an int or a tuple; None for the whole array. 0 bounds each
      column of a dense kernel, the weights of one output (a max-norm constraint).

    >>> print(l2_ball(1.0)(jnp.array([3.0, 4.0])))
    [0.6 0.8]
    """
    checks.number("radius", radius, 0.0, float("inf"))

    def onto(x):
        length = length_over(x, tuple(range(x.ndim)) if axis is None else axis)
        return shortened(x, as_length(radius, real_part(x.dtype)), length)

    return onto


@builder
def simplex(total: Scalar = 1.0) -> Callable[[jax.Array], jax.Array]:
    """The nearest point without values below zero whose last axis sums to total.

        y_i = max(x_i - theta, 0), with theta such that sum(y) = total

    - `total`: at least 0; 1, the default, gives probabilities.

    A scalar becomes total. Held, Wolfe & Crowder (1974); Duchi et al. (2008), figure 1.

    >>> print(simplex()(jnp.array([1.0, 0.5, -1.0])))
    [0.75 0.25 0.  ]
    """
    checks.number("total", total, 0.0, float("inf"))

    def onto(x):
        checks.real("x", x)
        if not x.size:
            return x
        rows = jnp.atleast_1d(x)
        top = jax.lax.stop_gradient(jnp.max(rows, -1, keepdims=True))
        rows = rows - top  # the result is the same; sums of huge values would be mostly rounding
        falling = -jnp.sort(-rows, -1)
        count = jnp.arange(1, rows.shape[-1] + 1).astype(x.dtype)
        count = jnp.broadcast_to(count, falling.shape)
        thetas = (jnp.cumsum(falling, -1) - as_dtype(total, x.dtype)) / count
        largest = jnp.sum(falling > thetas, -1, keepdims=True) - 1  # the last value above zero
        theta = jnp.take_along_axis(thetas, jnp.maximum(largest, 0), -1)
        return jnp.maximum(rows - theta, 0).reshape(x.shape)

    return onto
