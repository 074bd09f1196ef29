"""What tests of several optimizers share: runs, small arrays, comparisons."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import fnn
from fnn import optim
from fnn.testing import optimizers as kit
from tests.optim.rows import run
from tests.support import asarray


def updates_of(tx, grads, dtype=jnp.float32):
    """The updates for gradients [steps, ...], jitted."""
    grads = asarray(grads, dtype)
    return jax.jit(lambda g: run(tx, {"w": g}, {"w": jnp.zeros_like(g[0])})["w"])(grads)


seeds = st.integers(0, 2**32 - 1)


def minimized(tx, value_fn, x, steps):
    """Params, state and all values of a run down value_fn, as one scan."""

    def step(carry, _):
        x, opt_state = carry
        value, grad = jax.value_and_grad(value_fn)(x)
        extra = dict(value=value, grad=grad, value_fn=value_fn)
        updates, opt_state = tx.update(grad, opt_state, x, **extra)
        return (optim.apply_updates(x, updates), opt_state), value

    (x, opt_state), values = jax.lax.scan(step, (x, tx.init(x)), None, steps)
    return x, opt_state, values


def check_runs(tx):
    """The part of check_optimizer that needs value_fn, down one small valley."""
    valley = kit.Valley(*({"w": jnp.array(a)} for a in ([1.0, 2.0], [0.3, 0.0], [3.0, 0.0])))
    kit.check_protocol(tx)
    kit.check_still(tx)
    run = jax.jit(partial(kit._run, tx))
    step = jax.jit(lambda state, params: kit._update(tx, state, params, valley))
    kit.check_runs(tx, valley, step, run)
    kit.check_lanes(tx, valley, run)
    kit.check_host(tx, valley, step)
    kit.check_finite_derivatives(tx, valley, True)


def steps(tx, grads, params):
    """The updates for gradients [steps, ...], with params that follow them, and the last state."""

    def step(carry, g):
        params, opt_state = carry
        updates, opt_state = tx.update(g, opt_state, params)
        return (jax.tree.map(lambda p, u: p + u, params, updates), opt_state), updates

    with jax.numpy_dtype_promotion("standard"):  # optax asks for it
        run = jax.jit(lambda g, p: jax.lax.scan(step, (p, tx.init(p)), g))
        (_, opt_state), updates = run(grads, params)
    return updates, opt_state


def normal(*shape, seed=0):
    """In the widest float that is enabled."""
    return asarray(np.random.default_rng(seed).normal(size=shape), float)


def first_update(tx, g, p=None):
    p = jnp.ones_like(g) if p is None else p
    with jax.numpy_dtype_promotion("standard"):
        return np.float64(jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(g, p))


def f32(*shape, seed=0):
    return asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def steps_of(tx, grads, params, extra=None):
    """All updates, the last params and the last state, one jitted step after the other."""
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, **(extra or {})))
    opt_state, updates = tx.init(params), []
    for g in grads:
        u, opt_state = step(g, opt_state, params)
        params = fnn.optim.apply_updates(params, u)
        updates.append(u)
    return updates, params, opt_state


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
