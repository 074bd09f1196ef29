"""LAMB, LARS and the trust ratio: closed forms, and where optax differs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fnn import optim
from tests.optim.contract import contract
from tests.optim.rows_trust import ROWS
from tests.optim.support import first_update, normal, steps
from tests.support import asarray

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_the_length_of_a_step_is_lambs_rate_and_larss_coefficient():
    p, g = normal(2, 4, 3)
    u = first_update(optim.lamb(0.01, weight_decay=0.1), g, p)
    np.testing.assert_allclose(np.linalg.norm(u), 0.01 * np.linalg.norm(p), rtol=1e-5)
    u = first_update(optim.lars(2.0), g, p)
    np.testing.assert_allclose(np.linalg.norm(u), 2e-3 * np.linalg.norm(p), rtol=1e-5)


def test_masks_of_lamb_and_lars():
    """LAMB's leaves out of decay; LARS's takes the gradient as it is, with momentum."""
    p = {"kernel": asarray([3.0, 4.0]), "bias": asarray([1.0])}
    g = {"kernel": asarray([0.0, 2.0]), "bias": asarray([5.0])}
    tx = optim.lars(1.0, weight_decay=0.1, mask="kernel")
    updates, _ = jax.jit(tx.update)(g, tx.init(p), p)
    np.testing.assert_allclose(updates["bias"], -5)
    want = 1e-3 * 5 / (2 + 0.5) * np.array([0.3, 2.4])
    np.testing.assert_allclose(updates["kernel"], -want, rtol=1e-6)
    decayed, plain = (
        optim.lamb(1.0, weight_decay=w, mask=m) for w, m in ((0.5, "kernel"), (0.0, None))
    )
    bias = [jax.jit(tx.update)(g, tx.init(p), p)[0]["bias"] for tx in (decayed, plain)]
    np.testing.assert_allclose(*bias)


def test_lars_measures_the_gradient_and_the_decay_apart():
    """You et al. 2017, algorithm 1: |g| + decay |p|; optax has |g + decay p|, which may be 0."""
    p = asarray([3.0, 4.0])
    g = -0.5 * p * (1 - 1e-3)
    ours, theirs = (lib.lars(1.0, weight_decay=0.5) for lib in (optim, optax))
    np.testing.assert_allclose(np.linalg.norm(first_update(theirs, g, p)), 5e-3, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(first_update(ours, g, p)), 2.5e-6, rtol=1e-3)
    like_theirs = optim.chain(
        optim.add_decayed_weights(0.5),
        optim.scale_by_trust_ratio(trust_coefficient=0.001),
        optim.scale_by_learning_rate(1.0),
        optim.trace(0.9),
    )
    np.testing.assert_allclose(
        first_update(like_theirs, g, p), first_update(theirs, g, p), rtol=1e-3
    )


def test_larss_velocity_remembers_the_rate():
    """You et al. 2017, algorithm 1: the velocity gathers scaled steps."""
    tx = optim.lars(lambda count: jnp.where(count == 0, 1.0, 0.0), momentum=0.9)
    first, second = steps(tx, jnp.ones((2, 3)), jnp.ones(3))[0]
    np.testing.assert_allclose(second, 0.9 * first)


def test_trust_ratio_of_a_large_leaf_in_float16():
    """The norm of 10,000 params of 10 is 1000; optax sums their squares in float16."""
    p, g = jnp.full(10_000, 10.0, "float16"), jnp.full(10_000, 0.01, "float16")
    ours, theirs = (lib.scale_by_trust_ratio() for lib in (optim, optax))
    np.testing.assert_allclose(first_update(ours, g, p), 10, rtol=1e-3)
    assert not np.isfinite(first_update(theirs, g, p)).any()


def test_trust_ratio_of_a_tiny_update():
    """Squares underflow, and optax takes the norm for zero."""
    p, g = jnp.full(2, 3.0), jnp.full(2, 1e-25)
    ours, theirs = (lib.scale_by_trust_ratio() for lib in (optim, optax))
    np.testing.assert_allclose(first_update(ours, g, p), 3, rtol=1e-5)
    np.testing.assert_allclose(first_update(theirs, g, p), 1e-25, rtol=1e-5)
