"""RAdam, AdaBelief and Yogi: the contract, closed forms, and where optax differs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.testing import assert_allclose

from fnn import optim
from tests.optim.contract import contract
from tests.optim.rows import run
from tests.optim.rows_adam_second_moment import ROWS
from tests.optim.support import updates_of
from tests.support import asarray

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_radam_begins_as_momentum_and_ends_as_adam():
    """With b2 = 0.999, rho_t is below 5 up to t = 5; and tends to rho_inf, r_t to 1."""
    grads = np.random.default_rng(0).normal(size=(8, 4))
    got = updates_of(optim.scale_by_radam(0.5), grads)
    m = np.zeros(4)
    for t, g in enumerate(grads[:5], start=1):
        m = 0.5 * m + 0.5 * g
        assert_allclose(got[t - 1], m / (1 - 0.5**t), rtol=1e-5)
    assert (np.abs(got[5:]) < 0.1).all()  # r_6 = 0.04
    radam, adam = optim.scale_by_radam(), optim.scale_by_adam()
    g = asarray(grads[0], "float32")
    state = adam.init(g)._replace(count=jnp.int32(10**6), mu=g / 2, nu=g**2)
    assert_allclose(radam.update(g, state)[0], adam.update(g, state)[0], rtol=1e-5)


def test_yogi_stands_still_on_a_zero_gradient():
    zeros = jnp.zeros((2, 3))
    with jax.numpy_dtype_promotion("standard"):
        assert (updates_of(optax.yogi(0.1), zeros) < -1e-6).all()
    assert (updates_of(optim.yogi(0.1), zeros) == 0).all()


def test_radams_derivative_by_b2():
    """Before rho_t is 4, r_t is the root of a negative number, and optax differentiates it."""
    g = {"w": jnp.ones((4, 1))}

    def total(lib, b2):
        return jnp.sum(run(lib.scale_by_radam(b2=b2), g, {"w": jnp.zeros(1)})["w"])

    assert jax.jit(jax.grad(partial(total, optim)))(0.999) == 0  # momentum alone
    with jax.numpy_dtype_promotion("standard"):
        assert np.isnan(jax.jit(jax.grad(partial(total, optax)))(0.999))
