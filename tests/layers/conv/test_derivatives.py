"""Derivatives stated by hand."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fnn.layers.conv.derivatives import with_transpose
from tests.support import assert_close


def test_a_function_is_transposed_as_it_is_told():
    """Twice its transpose shows which of the two each mode runs; derivatives pass through both."""
    with jax.enable_x64(True):
        a, v = np.random.default_rng(3).normal(size=(3, 2)), jnp.arange(1.0, 3.0)

        def apply(a, v):
            return with_transpose(lambda v: jnp.sin(a) @ v, lambda y: 2 * jnp.sin(a).T @ y, v)

        y, pull = jax.vjp(partial(apply, a), v)
        assert_close(y, np.sin(a) @ v, dtype="float64")
        assert_close(jax.jvp(partial(apply, a), (v,), (v,))[1], np.sin(a) @ v, dtype="float64")
        assert_close(pull(y)[0], 2 * np.sin(a).T @ y, dtype="float64")
        assert_close(jax.vjp(pull, y)[1]((v,))[0], np.sin(a) @ v, dtype="float64")
        # by what is given: y' dA v forward, and the derivative of 2 A'
        way = jnp.cos(a)
        assert_close(
            jax.jvp(lambda a: apply(a, v), (a,), (way,))[1], (np.cos(a) * way) @ v, dtype="float64"
        )

        def pulled(a):
            return jax.vjp(partial(apply, a), v)[1](jnp.ones(3))[0]

        assert_close(
            jax.jvp(pulled, (a,), (way,))[1], 2 * (np.cos(a) * way).T @ np.ones(3), dtype="float64"
        )
        many = jax.vmap(apply, (None, 1), 1)(a, jnp.stack([v, -v], 1))
        assert_close(many, np.stack([y, -y], 1), dtype="float64")


def test_stating_a_transpose_costs_nothing():
    """XLA is left with the two functions: a sum or a change of sign would pass over memory."""

    def pulled(a, v, y):
        out, pull = jax.vjp(partial(with_transpose, lambda v: a @ v, lambda y: a.T @ y), v)
        return out, pull(y)

    text = jax.jit(pulled).lower(jnp.ones((4, 8)), jnp.ones(8), jnp.ones(4)).compile().as_text()
    assert not re.findall(r" (?:negate|subtract|add)\(", text), text
