"""Polyak's step: in proportion to the gap between the loss and its minimum."""

from __future__ import annotations

import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.core.types import Scalar, Schedule
from fnn.optim.arithmetic import as_dtype, divide, norm, sqrt
from fnn.optim.clip import global_norm
from fnn.optim.transform import Transform, chain, each_leaf, scale_by_learning_rate


@builder
def scale_by_polyak(
    f_min: Scalar = 0.0, max_learning_rate: Scalar = 1.0, eps: Scalar = 0.0, variant: str = "sps"
) -> Transform:
    """The gradient times Polyak's step size, from the value at the params.

        gamma = min((f - f_min) / (|g|^2 + eps), max_learning_rate)        u = gamma g

    - `f_min`: the least value that the loss can have.
    - `max_learning_rate`: at least 0; infinity sets no bound.
    - `eps`: added to the squared norm, which is over the whole tree. A zero gradient moves nothing.
    - `variant`: "sps", which ascends where f is below f_min, or "sps+", which stays there.

    `update` needs `value`, the loss of these gradients, and raises InputError without it. Polyak
    (1987), section 5.3.2; Loizou et al. (2021), equation 3.

    >>> tx, x = scale_by_polyak(), jnp.array([3.0, 4.0])
    >>> print(tx.update(2 * x, tx.init(x), value=jnp.sum(x**2))[0])  # halfway down the parabola
    [1.5 2. ]
    """
    checks.number("f_min", f_min, float("-inf"), float("inf"))
    checks.number("max_learning_rate", max_learning_rate, 0.0, float("inf"))
    checks.number("eps", eps, 0.0, float("inf"))
    checks.choice("variant", variant, ("sps", "sps+"))

    def update(grads, opt_state, params=None, *, value=None, **extra):
        if value is None or jnp.shape(value) != ():
            raise errors.InputError(
                "value, the loss at the params, one number",
                f"value {errors.show(value)}",
                "pass it, as tx.update(grads, opt_state, params, value=loss)",
            )
        length = global_norm(grads)
        dtype = length.dtype
        gap = jnp.asarray(value).astype(dtype) - as_dtype(f_min, dtype)
        if variant == "sps+":
            gap = jnp.maximum(gap, 0)
        length = norm(length, sqrt(as_dtype(eps, dtype)))
        # divided twice: the square of a small length underflows
        gamma = divide(divide(gap, length), length)
        gamma = jnp.minimum(gamma, as_dtype(max_learning_rate, dtype))
        (updates,) = each_leaf(lambda p, g: (as_dtype(gamma, g.dtype) * g,), grads)
        return updates, opt_state

    return Transform(lambda params: (), update)


@builder
def polyak_sgd(
    max_learning_rate: Scalar = 1.0,
    scaling: Scalar | Schedule = 1.0,
    f_min: Scalar = 0.0,
    eps: Scalar = 0.0,
    variant: str = "sps",
) -> Transform:
    """Descent by Polyak's step: p = p - scaling gamma g, see `scale_by_polyak`.

    - `max_learning_rate`, `f_min`, `eps`, `variant`: see `scale_by_polyak`.
    - `scaling`: a number or a schedule f(count) that multiplies all steps; the paper's 1 / c.

    `update` needs `value`, which `fnn.train.step` passes.

    >>> tx, x = polyak_sgd(), jnp.array([3.0, 4.0])
    >>> print(tx.update(2 * x, tx.init(x), value=jnp.sum(x**2))[0])
    [-1.5 -2. ]
    """
    step = scale_by_polyak(f_min, max_learning_rate, eps, variant)
    return chain(step, scale_by_learning_rate(scaling))
