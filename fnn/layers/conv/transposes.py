"""A linear function with a transpose of its own."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Linear = Callable[[jax.Array], jax.Array]


def with_transpose(run: Linear, back: Linear, v: jax.Array) -> jax.Array:
    """run(v), linear in v, whose transpose is `back` and not what JAX makes of `run`.

    For functions that JAX transposes into something slow. Forward mode runs the one, reverse mode
    the other, and `vmap` and further derivatives, those of `run` and `back`, pass through.

    In JAX 0.10 only the solution of linear equations can be told how it is transposed without
    losing one of these (`linear_call` has no `vmap`, `custom_vjp` no forward mode). So run(v) is
    stated as one, symmetric, in x = (v, y) and a dual copy of it (A is `run`, I the identity):

        | 0    L' |          | I  0 |                      | I  0 |
        | L    0  |,    L =  | A  I |,    with the inverse | -A I | of L.
    """

    def equations(unknown):
        (v, y), (dv, dy) = unknown
        there, here = run(v), back(dy)
        none = _nothing(there) + _nothing(here)
        return (dv + here + none, dy + none), (v + none, y + there + none)

    def solve(_, known):
        (dv, dy), (v, y) = known
        return (v, y - run(v)), (dv - back(dy), dy)

    like = v, jax.eval_shape(run, v)
    zeros = jax.tree.map(lambda a: jnp.broadcast_to(_nothing(v), a.shape), like)
    known = zeros, (v, zeros[1])
    solved = jax.lax.custom_linear_solve(equations, known, solve, symmetric=True)
    return sum(map(_nothing, jax.tree.leaves(solved))) - solved[0][1]


def _nothing(x: jax.Array) -> jax.Array:
    """The sum of no value of x: 0, and for JAX linear in x; no part of a compiled program.

    JAX 0.10 fails where some parts of an equation have a derivative and others have none.
    """
    return jnp.sum(x[..., :0])
