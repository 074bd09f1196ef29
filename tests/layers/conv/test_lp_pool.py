"""The pool between the mean and the maximum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from tests.layers.conv import oracles
from tests.layers.conv.support import FLOATS, assert_unary, pool_cases
from tests.layers.support import seeds
from tests.support import asarray, assert_close


@given(
    case=pool_cases(),
    p=st.sampled_from([1, 2, 3.5]),
    dtype=st.sampled_from(FLOATS),
    seed=seeds,
)
def test_lp_pool_is_the_loop(case, p, dtype, seed):
    """Values are multiples of 1/2, so there are zeros."""
    window, options, shape = case
    assert_unary(
        fnn.lp_pool(window, p, **options),
        np.round(2 * np.random.default_rng(seed).normal(size=shape)) / 2,
        dtype,
        lambda x: oracles.lp_pool(x, window, p, **options),
        lambda x, dy: oracles.lp_pool_backward(x, dy, window, p, **options),
    )


def test_lp_pool_of_large_small_and_infinite_values():
    """Powers that float32 cannot hold, and exponents near the maximum."""
    x = np.float32([[3e30, 4e30], [3e-30, 4e-30], [np.inf, 1], [np.nan, 1], [0, 0], [-2, 1]])
    want = [[5e30], [5e-30], [np.inf], [np.nan], [0], [np.sqrt(5)]]
    layer = fnn.lp_pool((2,), 2)
    np.testing.assert_allclose(layer({}, asarray(x)[..., None])[..., 0], want, rtol=1e-6)
    sharp = fnn.lp_pool((2,), 1000.0)({}, asarray(x)[..., None])[..., 0]
    np.testing.assert_allclose(sharp[-1], [2], rtol=1e-6)
    assert fnn.lp_pool((2,), 2)({}, jnp.float16([[300.0], [400.0]]))[0, 0] == 500


@pytest.mark.parametrize("strides", [None, (1, 1)])
def test_lp_pool_of_zeros_has_finite_derivatives(strides):
    x = jnp.zeros((4, 4, 1)).at[0, 1].set(2.0)

    def loss(x, p):
        return jnp.sum(jnp.sin(fnn.lp_pool((2, 2), p, strides=strides)({}, x)))

    @jax.jit
    def derivatives(x, p):
        slope = jax.grad(loss)
        return slope(x, p), *jax.jvp(slope, (x, p), (x + 1, 1.0)), jax.jacrev(slope)(x, p)

    for p in (1.0, 1.5, 2.0, 3.0):
        slope, *others = derivatives(x, p)
        assert np.all(slope[2:] == 0) and slope[0, 1] != 0
        assert all(np.isfinite(d).all() for d in (slope, *others))


def test_lp_pool_has_the_hessian_of_a_norm_at_zero_entries():
    """Of |x| it is (1 - u u') / |x| with u = x / |x|; a rectifier leaves such zeros."""
    x = np.array([3.0, 0.0, 0.0, -4.0])
    with jax.enable_x64(True):

        def norm(x):
            return fnn.lp_pool((4,), 2)({}, x[:, None])[0, 0]

        u, slope = x / 5, jax.grad(norm)
        hessians = jax.jit(lambda x: [jax.jacfwd(slope)(x), jax.jacrev(slope)(x)])
        for hessian in hessians(asarray(x)):
            assert_close(hessian, (np.eye(4) - np.outer(u, u)) / 5)


def test_lp_pool_takes_a_traced_exponent_and_its_derivative():
    x = np.array([3.0, -1.0, 0.0, 0.5, 2.0, 2.0]).reshape(6, 1)
    with jax.enable_x64(True):

        @jax.jit
        def total(p):
            return fnn.lp_pool((3,), p)({}, asarray(x)).sum()

        for p in (1.5, 2.0, 4.0):
            assert_close(total(p), oracles.lp_pool(x, (3,), p).sum())
            slope = (
                oracles.lp_pool(x, (3,), p + 1e-6).sum() - oracles.lp_pool(x, (3,), p - 1e-6).sum()
            )
            assert_close(jax.grad(total)(p), slope / 2e-6, tolerance=1e-7)
            assert_close(jax.jvp(total, (p,), (1.0,))[1], slope / 2e-6, tolerance=1e-7)


def test_lp_pool_differentiates_under_scan_and_checkpoint():
    """The norm's derivatives pass through the transforms that training uses."""
    layer = fnn.lp_pool((2,), 3)
    x = jax.random.normal(jax.random.key(0), (5, 4, 2))

    def loss(x):
        return jax.lax.scan(lambda t, x: (t + layer({}, x).sum(), None), 0.0, x)[0]

    want = oracles.lp_pool_backward(np.float64(x), np.ones((5, 2, 2)), (2,), 3)
    assert_close(jax.grad(jax.checkpoint(loss))(x), want)
