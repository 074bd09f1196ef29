"""Gradients through whole training runs, forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.shapes import as_array


def forward_value_and_grad(fn: Callable, *, has_aux: bool = False) -> Callable:
    """`jax.value_and_grad` by its first argument, in forward mode.

        d fn / d x_i = jvp(fn, x, e_i), for every number x_i in x, side by side

    Reverse mode through a run keeps what every step computed (but see `checkpoint_every` of
    `fnn.train.run`) and gives the derivative by any number of hyperparameters at the cost of a few
    runs. Forward mode keeps nothing, however long the run is, and costs about a run for each
    number in x: it is for a few (Franceschi et al., 2017).

    - `fn(x, *args)`: a scalar, or (scalar, aux) with `has_aux`; x is a tree of floats.

    Returns a function that gives ((value, aux), grads) with `has_aux`, or (value, grads).
    Raises ShapeError if the value is not a scalar, DtypeError for an x that is not of floats.

    >>> def last(rate):  # gradient descent on x^2 / 2, from 1
    ...     return jax.lax.scan(lambda x, _: (x - rate * x, None), 1.0, length=3)[0]
    >>> value, slope = forward_value_and_grad(last)(0.5)  # (1 - rate)^3
    >>> print(value, slope)
    0.125 -0.75
    """
    checks.function("fn", fn, "(x, *args)")

    def value_and_grad(x: Any, *args: Any, **kwargs: Any) -> Any:
        with errors.within("forward_value_and_grad"):
            x = jax.tree.map(_array, x)
            checks.floating_leaves("x", x, "differentiate by floats alone")

        def twice(x):
            out = fn(x, *args, **kwargs)
            value = out[0] if has_aux else out
            if jnp.shape(value) != ():
                mend = "average it: jnp.mean(value)"
                raise errors.ShapeError("fn to return a scalar", errors.show(value), mend)
            return value, out

        grads, out = jax.jacfwd(twice, has_aux=True)(x)
        return out, jax.tree.map(lambda g, a: g.astype(a.dtype), grads, x)

    return value_and_grad


def _array(a: Any) -> jax.Array:
    return jnp.asarray(a) if isinstance(a, (int, float)) else as_array(a)
