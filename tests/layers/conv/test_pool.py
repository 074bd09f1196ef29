"""Pools over windows against the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from tests.layers.conv import oracles
from tests.layers.conv.support import FLOATS, assert_unary, pool_cases, special_values
from tests.layers.support import DTYPES, rounded, run_and_pull, seeds, wide
from tests.support import asarray, assert_close


def assert_pool(layer, x, dtype, forward, backward):
    assert layer.specs(jax.ShapeDtypeStruct(x.shape, jnp.float32)) == ({}, {})
    with wide(dtype):
        x, exact = rounded(x, dtype)
        want = forward(exact)
        dy, dy_exact = rounded(np.random.default_rng(7).normal(size=want.shape), dtype)
        y, _, dx = run_and_pull(layer, {}, x, dy)
        assert_close(y, want, dtype=dtype)
        assert_close(dx, backward(exact, dy_exact), dtype=dtype)


@given(case=pool_cases(), dtype=st.sampled_from(DTYPES), seed=seeds)
def test_max_pool_is_the_loop(case, dtype, seed):
    """Values are multiples of 1/2, so there are ties."""
    window, options, shape = case
    assert_pool(
        fnn.max_pool(window, **options),
        np.round(2 * np.random.default_rng(seed).normal(size=shape)) / 2,
        dtype,
        lambda x: oracles.max_pool(x, window, **options)[0],
        lambda x, dy: oracles.max_pool_backward(x, dy, window, **options),
    )


@pytest.mark.parametrize("strides", [None, (1, 2)])
@pytest.mark.parametrize("padding", ["SAME", 1, [(1, 0), (0, 1)]])
def test_max_pool_padding_is_never_the_maximum(padding, strides):
    x = special_values((2, 5, 4, 1), [-np.inf, -1e30, -5, np.nan])
    options = dict(strides=strides, padding=padding)
    y = fnn.max_pool((2, 3), **options)({}, asarray(x))
    np.testing.assert_array_equal(y, oracles.max_pool(x, (2, 3), **options)[0])


@given(
    case=pool_cases(), count_include_pad=st.booleans(), dtype=st.sampled_from(DTYPES), seed=seeds
)
def test_avg_pool_is_the_loop(case, count_include_pad, dtype, seed):
    window, options, shape = case
    options = options | dict(count_include_pad=count_include_pad)
    assert_pool(
        fnn.avg_pool(window, **options),
        np.random.default_rng(seed).normal(size=shape),
        dtype,
        lambda x: oracles.avg_pool(x, window, **options),
        lambda x, dy: oracles.avg_pool_backward(x, dy, window, **options),
    )


def test_avg_pool_differentiates_forward():
    layer = fnn.avg_pool((2, 2), strides=1, padding="SAME")
    x, dx = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype("float32")[:, None]
    _, tangent = jax.jvp(lambda x: layer({}, x), (asarray(x),), (asarray(dx),))
    assert_close(tangent, oracles.avg_pool(dx, (2, 2), strides=1, padding="SAME"))


@pytest.mark.parametrize("pool", [fnn.max_pool, fnn.avg_pool])
def test_no_window_lies_in_the_padding(pool):
    with pytest.raises(fnn.FnnError, match="padding below the window"):
        pool((2,), padding=((2, 0),))


@given(
    kind=st.sampled_from(["min", "sum"]),
    case=pool_cases(),
    dtype=st.sampled_from(FLOATS),
    seed=seeds,
)
def test_min_and_sum_pools_are_the_loops(kind, case, dtype, seed):
    """Values are multiples of 1/2, so there are ties and zeros."""
    window, options, shape = case
    x = np.round(2 * np.random.default_rng(seed).normal(size=shape)) / 2
    size = int(np.prod(window))
    layer, want, backward = {
        "min": (
            fnn.min_pool(window, **options),
            lambda x: oracles.min_pool(x, window, **options)[0],
            lambda x, dy: oracles.min_pool_backward(x, dy, window, **options),
        ),
        "sum": (
            fnn.sum_pool(window, **options),
            lambda x: size * oracles.avg_pool(x, window, count_include_pad=True, **options),
            lambda x, dy: oracles.avg_pool_backward(
                x, size * dy, window, count_include_pad=True, **options
            ),
        ),
    }[kind]
    assert_unary(layer, x, dtype, want, backward)


@pytest.mark.parametrize("strides", [None, (1, 2)])
def test_min_pool_of_special_values_and_padding(strides):
    """NaN wins, padding never does; apart or overlapping."""
    values = np.float32([-np.inf, np.inf, 0, 1, np.nan])
    x = np.random.default_rng(0).choice(values, size=(3, 5, 4, 2), p=[0.1, 0.6, 0.1, 0.1, 0.1])
    options = dict(strides=strides, padding=[(1, 0), (0, 1)])
    want = -oracles.max_pool(-x, (2, 3), **options)[0]
    np.testing.assert_array_equal(fnn.min_pool((2, 3), **options)({}, asarray(x)), want)
    assert np.isnan(want).any() and np.isposinf(want).any()


def test_min_pool_of_windows_apart_needs_no_select_and_scatter():
    x = jnp.zeros((2, 4, 6, 3))
    text = str(jax.make_jaxpr(jax.grad(lambda x: fnn.min_pool((2, 2))({}, x).sum()))(x))
    assert "select_and_scatter" not in text and "reduce_window" not in text
