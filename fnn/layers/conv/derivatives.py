"""Derivatives stated by hand, where JAX makes slow ones: of products, and of linear functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Linear = Callable[[jax.Array], jax.Array]


def differentiate(apply: Any, in_x: Callable[..., Any], in_kernel: Callable[..., Any]) -> None:
    """Derive `apply(x, kernel, static)` by two functions equal to it, each linear in one of these.

    `apply` is a `jax.custom_jvp`.
    """

    def jvp(static, primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        y = apply(x, kernel, static)
        dy = jnp.zeros_like(y) if isinstance(dx, SymbolicZero) else in_x(dx, kernel, static)
        return y, dy if isinstance(dkernel, SymbolicZero) else dy + in_kernel(x, dkernel, static)

    apply.defjvp(jvp, symbolic_zeros=True)


def with_transpose(run: Linear, back: Linear, v: jax.Array) -> jax.Array:
    """run(v), linear in v, whose transpose is `back` instead of what JAX makes of `run`.

    Forward mode runs the one, reverse mode the other; `vmap` and further derivatives, those of
    `run` and `back`, pass through.

    In JAX 0.10 only the solution of linear equations takes a transpose without losing one of these
    (`linear_call` has no `vmap`, `custom_vjp` no forward mode). So run(v) is stated as one,
    symmetric, in x = (v, y) and a dual copy of it (A is `run`, I the identity):

        | 0    L' |          | I  0 |                      | I  0 |
        | L    0  |,    L =  | -A I |,    with the inverse | A  I | of L.
    """

    def equations(unknown):
        (v, y), (dv, dy) = unknown
        there, here = run(v), back(dy)
        none = _nothing(there) + _nothing(here)
        return (dv - here + none, dy + none), (v + none, y - there + none)

    def solve(_, known):
        (dv, dy), (v, y) = known
        return (v, y + run(v)), (dv + back(dy), dy)

    like = v, jax.eval_shape(run, v)
    zeros = jax.tree.map(lambda a: jnp.broadcast_to(_nothing(v), a.shape), like)
    known = zeros, (v, zeros[1])
    solved = jax.lax.custom_linear_solve(equations, known, solve, symmetric=True)
    return solved[0][1] + sum(map(_nothing, jax.tree.leaves(solved)))


def _nothing(x: jax.Array) -> jax.Array:
    """The sum of none of x's values: 0, which JAX sees as linear in x, and XLA removes.

    JAX 0.10 fails where some parts of an equation have a derivative and others have none.
    """
    return jnp.sum(x[..., :0])
