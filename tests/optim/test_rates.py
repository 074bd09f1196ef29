"""Rates given as schedules, and leaves of every rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from fnn import optim
from tests.optim.rows import run
from tests.support import asarray

RATED = ["adam", "fromage", "lars", "optimistic_adam", "prodigy", "rprop", "schedule_free_adamw",
         "sm3", "signum", "novograd", "noisy_sgd"]  # fmt: skip


@pytest.mark.parametrize("name", RATED)
def test_a_constant_schedule_is_a_number(name):
    rng = np.random.default_rng(0)
    grads = {"w": asarray(rng.normal(size=(6, 3)), jnp.float32)}
    keyed = {"key": jax.random.key(0)} if name == "noisy_sgd" else {}
    p = {"w": jnp.ones(3)}
    build = getattr(optim, name)
    want = run(build(0.1, **keyed), grads, p)["w"]
    got = run(build(lambda count: jnp.float32(0.1), **keyed), grads, p)["w"]
    assert_allclose(got, want, rtol=1e-5)


def test_rprop_by_schedule():
    """Steps grow as they do without, and the schedule scales them; bounds are of the whole step."""
    tx = optim.rprop(lambda count: asarray([0.0, 1.0, 2.0, 0.5, 0.5])[count], max_step_size=2.0)
    grads = {"w": asarray([[1.0], [1.0], [1.0], [1.0], [-1.0]])}
    got = run(tx, grads, {"w": jnp.zeros(1)})["w"][:, 0]
    # e = 1, 1.2, then 1.44 x 2 is cut to 2, e = 1 x 1.2 = 1.2, a turn
    assert_allclose(got, [0.0, -1.2, -2.0, -0.6, 0.0], rtol=1e-6)


def test_optimizers_rely_on_no_implicit_ranks():
    """With leaves of every rank in one tree; simplex divided rows by a vector."""
    p = {"a": jnp.ones(3), "b": jnp.ones((2, 3)), "c": jnp.ones(()), "d": jnp.ones((2, 2, 3))}
    simplex = optim.chain(optim.sgd(0.1), optim.project(optim.constraints.simplex()))
    with jax.numpy_rank_promotion("raise"):
        for tx in (simplex, optim.adafactor(0.1, 2), optim.fromage(0.1), optim.lamb(0.1)):
            jax.eval_shape(lambda p, tx=tx: tx.update(p, tx.init(p), p), p)
