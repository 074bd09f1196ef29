"""check_optimizer fails: each transform below breaks one promise, and the failure names it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.optim.arithmetic import increment, over_root
from fnn.testing import check_optimizer


class Slots(NamedTuple):
    count: Any
    nu: Any


def wide_zeros(p):
    return jnp.zeros(p.shape, p.dtype if p.dtype.itemsize > 4 else jnp.float32)


def transform(
    *,
    divide=lambda g, n: over_root(g, n, 1e-8),
    count=increment,
    zeros=wide_zeros,
    change=lambda u, s, g: u,
):
    """RMS scaling without a decay, one part of which may be replaced."""

    def init(params):
        return Slots(jnp.zeros((), jnp.int32), jax.tree.map(zeros, params))

    def update(grads, state, params=None):
        def squared(g, n):
            return n + jnp.square(g.astype(n.dtype))

        nu = jax.tree.map(squared, grads, state.nu)
        state = Slots(count(state.count), nu)
        updates = jax.tree.map(
            lambda g, n: jnp.asarray(-0.1 * divide(g.astype(n.dtype), n), g.dtype), grads, nu
        )
        return change(updates, state, grads), state

    return fnn.optim.Transform(init, update)


def one_more(updates, state, grads):
    return jax.tree.map(lambda u: u + jnp.ones((), u.dtype), updates)


def widened(updates, state, grads):
    return jax.tree.map(lambda u: u.astype(jnp.float32), updates)


def by_position(updates, state, grads):
    leaves, tree = jax.tree.flatten(updates)
    return jax.tree.unflatten(tree, [u * (i + 1) for i, u in enumerate(leaves)])


def by_size(updates, state, grads):
    return jax.tree.map(lambda u: u / u.size if u.size else u, updates)


def other_when_traced(updates, state, grads):
    return jax.tree.map(lambda u: 2 * u if isinstance(u, jax.core.Tracer) else u, updates)


FAULTS = {
    "root of zero": (dict(divide=lambda g, n: g / (jnp.sqrt(n) + 1e-8)), "finite derivatives"),
    "no epsilon": (dict(divide=lambda g, n: g / jnp.sqrt(n)), "zero updates|finite"),
    "narrow moments": (dict(zeros=jnp.zeros_like), "moments are float32 or wider"),
    "count that wraps": (dict(count=lambda n: n + 1), "the count does not overflow"),
    "moves without a gradient": (dict(change=one_more), "zero updates in"),
    "dtype of updates": (dict(change=widened), "updates are like the gradients"),
    "order of leaves": (dict(change=by_position), "names and order change nothing"),
    "size of leaves": (dict(change=by_size), "splitting leaves changes nothing"),
    "jit": (dict(change=other_when_traced), "jit equals eager"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_promise_is_named(name):
    options, message = FAULTS[name]
    with pytest.raises(AssertionError, match=message):
        check_optimizer(transform(**options))


def test_what_keeps_its_promises_passes():
    check_optimizer(transform())
