"""Gradients through whole training runs in forward mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.shapes import as_array
from fnn.core.types import Tree


@errors.named
def forward_value_and_grad(fn: Callable, *, has_aux: bool = False) -> Callable:
    """`jax.value_and_grad` with respect to the first argument, in forward mode.

        d fn / d x_i = jvp(fn, x, e_i), for every number x_i in x, side by side

    Reverse mode through a run stores the intermediate values of every step (but see
    `checkpoint_every` of `fnn.train.run`) and differentiates with respect to any number of
    hyperparameters at the cost of a few runs. Forward mode stores nothing, however long the run,
    and costs about one run per number in x, so it suits a few (Franceschi et al., 2017).

    - `fn(x, *args)`: a scalar, or (scalar, aux) with `has_aux`; x is a tree of floats.

    Returns a function that returns (value, grads), or ((value, aux), grads) with `has_aux`.
    Raises ShapeError if the value is not a scalar, DtypeError if x has leaves that are not floats.

    >>> def last(rate):  # gradient descent on x^2 / 2, from 1
    ...     return jax.lax.scan(lambda x, _: (x - rate * x, None), 1.0, length=3)[0]
    >>> value, slope = forward_value_and_grad(last)(0.5)  # (1 - rate)^3
    >>> print(value, slope)
    0.125 -0.75
    """
    checks.function("fn", fn, "(x, *args)")

    def value_and_grad(x: Tree, *args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        with errors.within("forward_value_and_grad"):
            x = jax.tree.map(_array, x)
            checks.floating_leaves("x", x, "differentiate with respect to floats only")

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
