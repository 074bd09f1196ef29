"""A linear function that is not transposed as JAX would, but as another one equal to it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Linear = Callable[[jax.Array, jax.Array], jax.Array]


def transposed_as(twin: Linear, run: Linear, given: jax.Array, v: jax.Array) -> jax.Array:
    """run(given, v), linear in v, whose transpose is that of `twin`, which is equal to it.

    Forward mode runs the one, reverse mode the transpose of the other: for where no single way to
    write a function is fast in both. Every derivative and `vmap` pass through.

    Only the solution of linear equations may be transposed in another way in JAX and still be
    differentiated in every mode (0.10: `linear_call` has neither `vmap` nor a derivative by what is
    given). So y = run(given, v) is stated as one: of (v, y) from (v, y - run(given, v)) = (v, 0).
    """

    def equations(unknown):
        v, y = unknown
        none = _nothing(given) * (_nothing(v) + _nothing(y))
        return v + none, y - run(given, v) + none

    def solve(_, known):
        v, y = known
        return v, y + run(given, v)

    def transpose_solve(_, known):
        dv, dy = known
        (back,) = jax.linear_transpose(lambda v: twin(given, v), v)(dy)
        return dv + back, dy

    zeros = jnp.broadcast_to(_nothing(v), jax.eval_shape(run, given, v).shape)
    v, y = jax.lax.custom_linear_solve(equations, (v, zeros), solve, transpose_solve)
    return y + _nothing(v)


def _nothing(x: jax.Array) -> jax.Array:
    """The sum of no value of x: 0, and for JAX linear in x; no part of a compiled program.

    Without it in every equation JAX 0.10 fails where only some of these have a derivative.
    """
    return jnp.sum(x[..., :0])
