"""RMSprop and Adagrad: closed forms, and where optax differs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from fnn import optim
from tests.optim import rows_rms
from tests.optim.contract import contract
from tests.optim.rows import run
from tests.optim.rows_rms import ROWS
from tests.optim.support import normal, steps
from tests.support import asarray

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


@pytest.mark.parametrize("centered", [False, True])
def test_complex_rmsprop(centered):
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(20, 3)) + 1j * rng.normal(size=(20, 3))
    n, m, want = np.zeros(3), np.zeros(3), []
    for g in grads:
        n, m = 0.9 * n + 0.1 * np.abs(g) ** 2, 0.9 * m + 0.1 * g
        want.append(-0.1 * g / np.sqrt(n - centered * np.abs(m) ** 2 + 1e-8))
    with jax.enable_x64(True):
        g = asarray(grads)
        got = run(optim.rmsprop(0.1, centered=centered), {"w": g}, {"w": g[0]})["w"]
    assert_allclose(got, want, rtol=1e-9)


def test_adagrad_of_a_constant_gradient_goes_down_as_the_root_of_time():
    tx = optim.scale_by_rss(initial_accumulator_value=0.0, eps=0.0)
    updates, _ = steps(tx, asarray([[3.0, -1e-3]] * 5), jnp.zeros(2))
    want = np.outer(1 / np.sqrt(np.arange(1, 6)), [1, -1])
    np.testing.assert_allclose(updates, want, rtol=1e-6)


def test_centered_rms_of_a_constant_gradient_is_a_geometric_series():
    """n - m^2 = g^2 (1 - d^t) d^t for g always the same."""
    d, t = 0.5, np.arange(1, 31)
    with jax.enable_x64(True):
        tx = optim.scale_by_stddev(decay=d, eps=0.0)
        updates, _ = steps(tx, jnp.full(30, 7.0), jnp.zeros(()))
    np.testing.assert_allclose(updates, 1 / np.sqrt((1 - d**t) * d**t), rtol=1e-12)


def test_centered_rms_of_nearly_constant_gradients():
    """n - m^2 is a difference of nearly equal numbers: negative by rounding, and its root NaN."""
    grads = 1e3 * (1 + 1e-5 * normal(200, 3))
    ours, theirs = (steps(lib.scale_by_stddev(), grads, grads[0])[0] for lib in (optim, optax))
    assert np.isnan(theirs).any()
    want = [rows_rms.rms(np.float64(g), 0.0, centered=True) for g in np.transpose(grads)]
    np.testing.assert_allclose(ours, np.transpose(want), rtol=0.1)


def test_rmsprops_velocity_does_not_remember_the_rate():
    """PyTorch and sgd scale the velocity by the rate; optax gathers scaled steps."""

    def schedule(count):
        return jnp.where(count == 0, 1.0, 0.0)

    grads = jnp.ones((2, 1))
    ours, theirs = (lib.rmsprop(schedule, momentum=0.9) for lib in (optim, optax))
    assert steps(ours, grads, grads[0])[0][1] == 0
    assert steps(theirs, grads, grads[0])[0][1] < -1
