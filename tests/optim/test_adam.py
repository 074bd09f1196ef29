"""Adam, AMSGrad and Adamax: the contract, published facts, and where optax differs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from fnn import optim
from tests.optim.contract import contract
from tests.optim.rows import run
from tests.optim.rows_adam import ROWS
from tests.optim.support import updates_of
from tests.support import asarray

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


@pytest.mark.parametrize("rule", ["adam", "amsgrad"])
def test_the_counterexample_to_adam(rule):
    """Reddi et al. 2018, theorem 1: on [-1, 1], slopes C, -1, -1 in turn sum up to C - 2 > 0, so
    that x should fall to -1; Adam with b1 = 0, b2 = 1 / (1 + C^2) climbs to 1."""
    c = 3.0
    tx = getattr(optim, rule)(
        lambda n: 0.5 / jnp.sqrt(1 + n.astype("float32")), 0.0, 1 / (1 + c**2)
    )

    def step(carry, t):
        x, opt_state = carry
        updates, opt_state = tx.update(jnp.where(t % 3 == 0, c, -1.0), opt_state)
        return (jnp.clip(x + updates, -1, 1), opt_state), None

    start = jnp.zeros(()), tx.init(jnp.zeros(()))
    (x, _), _ = jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(3000)))()
    assert x > 0.9 if rule == "adam" else x < -0.9


def test_amsgrads_second_moment_never_falls():
    grads = np.random.default_rng(0).normal(size=(50, 3))
    tx = optim.scale_by_amsgrad(b2=0.5)
    _, kept = jax.lax.scan(
        lambda s, g: (tx.update(g, s)[1],) * 2, tx.init(jnp.zeros(3)), asarray(grads, "float32")
    )
    assert (np.diff(kept.nu_max, axis=0) >= 0).all()
    assert (np.diff(kept.nu, axis=0) < 0).any()


def test_the_second_moment_in_bfloat16():
    """v = 1 - 0.999^3000 = 0.95 for gradients of 1; where 0.001 (1 - v) is less than half a unit
    of bfloat16's last place, v no longer moves."""

    def moment(tx):
        g = jnp.ones((), jnp.bfloat16)
        turn = jax.jit(lambda s: jax.lax.fori_loop(0, 3000, lambda _, s: tx.update(g, s)[1], s))
        return float(turn(tx.init(g)).nu)

    assert_allclose(moment(optim.scale_by_adam()), 1 - 0.999**3000, rtol=1e-4)
    with jax.numpy_dtype_promotion("standard"):
        assert moment(optax.scale_by_adam()) < 0.6


def test_amsgrads_maximum_is_of_uncorrected_moments():
    """g = 3, 0, 0 ...: w = (1 - b2) 9 throughout, and what = w / (1 - b2^t); optax's stays 9."""
    grads = jnp.zeros((6, 1)).at[0].set(3.0).at[1:].set(1e-3)
    options = dict(b1=0.0, b2=0.5, eps=0.0)
    ours = updates_of(optim.scale_by_amsgrad(**options), grads)
    assert_allclose(ours[-1], 1e-3 / np.sqrt(4.5 / (1 - 0.5**6)), rtol=1e-5)
    with jax.numpy_dtype_promotion("standard"):
        theirs = updates_of(optax.scale_by_amsgrad(**options), grads)
    assert_allclose(theirs[-1], 1e-3 / 3, rtol=1e-5)
    same = updates_of(optim.scale_by_amsgrad(**options, correct_first=True), grads)
    assert_allclose(same, theirs, rtol=1e-5)


def test_adam_with_a_rounded_moment_is_the_loop():
    rng = np.random.default_rng(0)
    grads = np.float32(rng.normal(size=(30, 4)))
    m, v, want = np.zeros(4), np.zeros(4), []
    for t, g in enumerate(np.float64(grads), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        want.append(-0.1 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8))
        m = np.float64(asarray(m, jnp.float32).astype(jnp.bfloat16))
    got = run(optim.adam(0.1, mu_dtype="bfloat16"), {"w": asarray(grads)}, {"w": jnp.zeros(4)})
    assert_allclose(got["w"], want, rtol=1e-2, atol=1e-4)
