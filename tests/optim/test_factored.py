"""Adafactor and SM3: closed forms, and where optax differs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fnn import optim
from tests.optim import rows_factored
from tests.optim.contract import contract
from tests.optim.rows_factored import ROWS
from tests.optim.support import first_update, normal, steps
from tests.support import asarray

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_sm3_of_a_vector_or_a_scalar_is_adagrad():
    grads = {"v": normal(4, 5), "s": normal(4, seed=1)}
    params = {"v": jnp.zeros(5), "s": jnp.zeros(())}
    got, _ = steps(optim.scale_by_sm3(b1=0.0), grads, params)
    want, _ = steps(optim.scale_by_rss(0.0, 0.0), grads, params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, want)


def test_sm3_bounds_adagrads_sum_from_above_in_little_memory():
    """Anil et al. 2019, on SM3-II: every v_t(i) is at least the sum of g_t(i)^2."""
    grads = normal(6, 3, 4, 5)
    updates, opt_state = steps(optim.scale_by_sm3(b1=0.0), grads, grads[0])
    row, column, depth = opt_state.mu
    assert [row.shape, column.shape, depth.shape] == [(3,), (4,), (5,)]
    total = np.cumsum(np.square(np.float64(grads)), 0)
    v = np.square(np.float64(grads) / np.float64(updates))
    assert (v >= total * (1 - 1e-5)).all()
    cover = np.minimum(np.minimum(row[:, None, None], column[:, None]), depth)
    np.testing.assert_array_less(total[-1], cover * (1 + 1e-5))


def test_factored_rms_is_exact_for_squares_of_rank_one():
    rows, columns = np.abs(normal(4)) + 0.1, np.abs(normal(6, seed=1)) + 0.1
    signs = np.where(normal(4, 6, seed=2) > 0, 1.0, -1.0)
    grads = jnp.tile(asarray(signs * np.outer(rows, columns), float), (3, 1, 1))
    for least, shapes in (1, [(4,), (6,), (0,)]), (100, [(0,), (0,), (4, 6)]):
        tx = optim.scale_by_factored_rms(min_dim_size_to_factor=least)
        updates, opt_state = steps(tx, grads, grads[0])
        np.testing.assert_allclose(updates, np.stack([signs] * 3), rtol=1e-5)
        assert [a.shape for a in opt_state[1:]] == shapes


@pytest.mark.parametrize("shape", [(7, 3, 5), (4, 4, 4), (2, 5, 4, 3)])
def test_the_two_longest_axes_are_factored_and_the_others_stacked(shape):
    with jax.enable_x64(True):
        grads = normal(2, *shape)
        ours, theirs = (
            steps(lib.scale_by_factored_rms(min_dim_size_to_factor=4), grads, grads[0])[0]
            for lib in (optim, optax)
        )
    want = rows_factored.factored_rms(list(np.asarray(grads)), 4)
    np.testing.assert_allclose(ours, want, rtol=1e-12)
    np.testing.assert_allclose(theirs, want, rtol=1e-6)  # its decay is float32


def test_adafactor_takes_the_papers_relative_step():
    """min(0.01, 1 / sqrt(t)) of the params' RMS, and min_scale of it where they are zero."""
    params = {"w": jnp.full(3, 2.0), "zero": jnp.zeros(2)}
    grads = jax.tree.map(jnp.ones_like, params)
    tx = optim.adafactor()
    updates, opt_state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.02, rtol=1e-6)
    np.testing.assert_allclose(updates["zero"], -1e-5, rtol=1e-6)
    late = jax.tree.map(lambda a: jnp.full_like(a, 40_000 - 1) if a.dtype == "int32" else a,
                        opt_state)  # fmt: skip
    updates, _ = tx.update(grads, late, params)
    np.testing.assert_allclose(updates["w"], -2 / 200, rtol=2e-6)


def test_sm3_of_scalars_empty_leaves_schedules_and_tiny_gradients():
    for wrong in (jnp.zeros(()), jnp.zeros((0, 3))):
        with pytest.raises((IndexError, ValueError)):
            first_update(optax.sm3(0.1), wrong)
        assert first_update(optim.sm3(0.1), wrong).shape == wrong.shape
    with pytest.raises(TypeError):
        first_update(optax.sm3(lambda count: 0.1), jnp.ones(1))
    tiny = jnp.full(2, 1e-6)
    np.testing.assert_allclose(first_update(optax.sm3(1.0), tiny), -1e-3, rtol=1e-3)
    np.testing.assert_allclose(first_update(optim.sm3(1.0), tiny), -0.1, rtol=1e-3)
    np.testing.assert_allclose(first_update(optim.sm3(1.0, eps=1e-8), tiny), -1e-3, rtol=1e-3)


def test_adafactors_learning_rate_scales_its_decay_and_may_be_the_papers():
    p, zero = jnp.full(4, 2.0), jnp.zeros(4)
    np.testing.assert_allclose(
        first_update(optax.adafactor(0.1, weight_decay_rate=0.5), zero, p), -1
    )
    np.testing.assert_allclose(
        first_update(optim.adafactor(0.1, weight_decay=0.5), zero, p), -0.1, rtol=1e-6
    )
    np.testing.assert_allclose(first_update(optax.adafactor(), p, p), -2, rtol=1e-5)  # rate 1
    np.testing.assert_allclose(first_update(optim.adafactor(), p, p), -0.02, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (16,)])
def test_adafactor_of_gradients_whose_squares_overflow(shape):
    g = jnp.full(shape, 1e25)
    ours = first_update(optim.scale_by_factored_rms(min_dim_size_to_factor=2), g)
    assert np.isfinite(ours).all()
    theirs = first_update(optax.scale_by_factored_rms(min_dim_size_to_factor=2), g)
    assert np.isnan(theirs).all() == (shape == (4, 4))


def test_adafactors_decay_in_float64():
    with jax.enable_x64(True):
        grads = asarray([[1.0], [2.0]])
        ours, theirs = (
            steps(lib.scale_by_factored_rms(), grads, grads[0])[0][1] for lib in (optim, optax)
        )
    want = 2 / np.sqrt(1 + 3 * 2**-0.8)
    assert abs(float(ours[0]) / want - 1) < 1e-15
    assert abs(float(theirs[0]) / want - 1) > 1e-9
