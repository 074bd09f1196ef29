"""Dropout and its variants: their masks, means and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from tests.layers import oracles
from tests.layers.support import KEY, seeds
from tests.support import asarray


def drop(rate, x, key, train=True):
    y, state = fnn.dropout(rate).apply({}, {}, x, key=key, train=train)
    assert state == {}
    return y


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_drops_at_its_rate_and_scales_the_rest(rate, dtype):
    n = 40_000
    y = drop(rate, jnp.full((n,), 3, dtype), jax.random.key(0))
    assert y.dtype == dtype
    dropped = np.asarray(y) == 0
    assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    kept = np.float64(y)[~dropped]
    np.testing.assert_allclose(kept, 3 / (1 - rate), rtol=1e-6 if dtype == "float32" else 1e-2)


def test_dropout_masks_are_independent_over_axes_and_keys():
    n, keys = 32, jax.random.split(jax.random.key(1), 32)
    masks = np.asarray(jax.vmap(lambda key: drop(0.5, jnp.ones((n, n)), key))(keys)) > 0
    for axis in range(3):  # means over one axis still vary over the others, by chance alone
        np.testing.assert_allclose(masks.mean(axis).std(), 0.5 / np.sqrt(n), rtol=0.1)


def test_dropout_repeats_its_mask_for_the_same_key_only():
    x = jnp.ones((100,))
    y = drop(0.5, x, jax.random.key(0))
    np.testing.assert_array_equal(y, drop(0.5, x, jax.random.key(0)))
    np.testing.assert_array_equal(y, jax.jit(lambda x, k: drop(0.5, x, k))(x, jax.random.key(0)))
    assert (np.asarray(y) != drop(0.5, x, jax.random.key(1))).any()


def test_dropout_is_the_identity_at_rate_0_and_in_evaluation():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    np.testing.assert_array_equal(drop(0.0, x, jax.random.key(1)), x)
    np.testing.assert_array_equal(drop(0.5, x, jax.random.key(1), train=False), x)
    np.testing.assert_array_equal(fnn.dropout(0.5)({}, x), x)


def test_dropout_without_a_key_raises():
    with pytest.raises(Exception, match="key"):
        drop(0.5, jnp.ones(3), None)


def test_dropout_of_everything_is_zero_not_nan():
    y, vjp = jax.vjp(lambda x: drop(1.0, x, jax.random.key(0)), jnp.ones((20,)))
    np.testing.assert_array_equal(y, np.zeros(20))
    np.testing.assert_array_equal(vjp(y + 1)[0], np.zeros(20))


def test_dropout_gradient_is_its_mask():
    x = jax.random.normal(jax.random.key(0), (200,))

    def f(x):
        return drop(0.25, x, jax.random.key(1))

    y, tangent = jax.jvp(f, (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(tangent, np.where(np.asarray(y) == 0, 0, 1 / 0.75), rtol=1e-6)
    np.testing.assert_array_equal(jax.vjp(f, x)[1](jnp.ones_like(x))[0], tangent)


def test_dropout_rate_may_be_a_tracer():
    x, rates = jnp.ones((4000,)), asarray([0.0, 0.25, 0.75], "float32")
    y = np.asarray(jax.jit(jax.vmap(lambda rate: drop(rate, x, jax.random.key(0))))(rates))
    for lane, rate in enumerate([0, 0.25, 0.75]):
        assert abs((y[lane] == 0).mean() - rate) < 0.05
        np.testing.assert_allclose(y[lane][y[lane] != 0], 1 / (1 - rate), rtol=1e-6)


def test_dropout_layers_of_one_network_drop_differently():
    net = fnn.serial(fnn.dropout(0.5), fnn.dropout(0.5))
    n = 10_000
    y, _ = net.apply({}, {}, jnp.ones((n,)), key=jax.random.key(0), train=True)
    assert abs((np.asarray(y) > 0).mean() - 0.25) < 0.03  # one mask twice would keep half


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("rate", [0.1, 0.001])
def test_dropout_scales_before_it_rounds(dtype, rate):
    x = jnp.full((4000,), 3.0, dtype)
    y, _ = fnn.dropout(rate).apply({}, {}, x, key=jax.random.key(0), train=True)
    kept = np.unique(np.asarray(y, np.float32))[-1]
    wanted = np.asarray(asarray(3.0 / (1 - rate), dtype), np.float32)
    np.testing.assert_allclose(kept, wanted, rtol=0 if dtype == jnp.bfloat16 else 2e-7)


@partial(jax.jit, static_argnums=0)
def noisy(build, option, x, key):
    """y and the gradient of its sum, with the option traced."""

    def f(x):
        return build(option).apply({}, {}, x, key=key, train=True)[0]

    y, vjp = jax.vjp(f, x)
    return y, vjp(jnp.ones_like(y))[0]


def spatial(rate):
    return fnn.spatial_dropout(rate, spatial_axes=2)


def path(rate):
    return fnn.drop_path(rate, 2)


N = 20_000


DROPS = {  # a builder, x's shape, the axes over which one mask is shared
    "dropout": (fnn.dropout, (N,), ()),
    "spatial_dropout": (spatial, (N // 10, 2, 3, 10), (1, 2)),
    "drop_path": (path, (N, 2, 3), (1, 2)),
}


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("dropout", "float32"),
        ("dropout", "bfloat16"),
        ("spatial_dropout", "float32"),
        ("drop_path", "bfloat16"),
    ],
)
def test_drops_share_one_mask_and_keep_the_mean(name, dtype):
    build, shape, shared = DROPS[name]
    for rate in (0.1, 0.5, 0.9):
        y, dx = noisy(build, jnp.float32(rate), jnp.full(shape, 3, dtype), KEY)
        assert y.dtype == dtype
        y, dx = np.float64(y), np.float64(dx)
        assert (y == y.max(shared, keepdims=True)).all()
        dropped = y == 0
        draws = dropped[(slice(None), *(0,) * len(shared))]
        bound = 5 * np.sqrt(rate * (1 - rate) / N)  # five standard deviations
        assert abs(draws.mean() - rate) < bound
        np.testing.assert_allclose(
            y[~dropped], 3 / (1 - rate), rtol=1e-6 if dtype == "float32" else 1e-2
        )
        np.testing.assert_allclose(dx, y / 3, rtol=1e-6 if dtype == "float32" else 1e-2)
    if draws.ndim > 1:  # channels of an example are dropped independently
        rows = draws.sum(1)
        assert abs(rows.var() - 10 * rate * (1 - rate)) < 0.2


ALL_DROPS = {**DROPS, "alpha_dropout": (fnn.alpha_dropout, (N,), ())}


@pytest.mark.parametrize("name", ALL_DROPS)
def test_rates_0_and_1_are_exact(name):
    build, shape, _ = ALL_DROPS[name]
    shape = (4, *shape[1:])
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    x[0], x[1] = np.inf, 0
    y, dx = noisy(build, jnp.float32(0), x, KEY)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx, np.ones(shape))
    y, dx = noisy(build, jnp.float32(1), x, KEY)
    np.testing.assert_array_equal(y, np.zeros(shape))
    np.testing.assert_array_equal(dx, np.zeros(shape))
    np.testing.assert_array_equal(build(1.0)({}, x), x)  # in evaluation


@pytest.mark.parametrize("name", ALL_DROPS)
def test_slopes_by_the_rate_are_finite(name):
    build, shape, _ = ALL_DROPS[name]
    x = jnp.ones((4, *shape[1:]))

    def total(rate):
        return build(rate).apply({}, {}, x, key=KEY, train=True)[0].sum()

    assert np.isfinite(jax.jit(jax.vmap(jax.grad(total)))(asarray([0.0, 0.3, 1.0]))).all()


@given(rate=st.floats(0.01, 0.95), seed=seeds)
def test_alpha_dropout_is_the_affine_map_of_the_paper(rate, seed):
    x = asarray(np.random.default_rng(seed).normal(size=300), "float32")
    y, dx = noisy(fnn.alpha_dropout, jnp.float32(rate), x, jax.random.key(seed))
    kept = np.asarray(dx) != 0
    np.testing.assert_allclose(y, oracles.alpha_dropout(x, kept, rate), rtol=1e-4, atol=1e-5)
    assert abs(kept.mean() - (1 - rate)) < 6 * np.sqrt(rate * (1 - rate) / 300) + 1 / 300


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_alpha_dropout_keeps_mean_0_and_variance_1(rate):
    n = 400_000
    x = jax.random.normal(jax.random.key(1), (n,))
    y = np.float64(noisy(fnn.alpha_dropout, jnp.float32(rate), x, KEY)[0])
    assert abs(y.mean()) < 5 / np.sqrt(n)
    fourth = np.mean((y - y.mean()) ** 4)
    assert abs(y.var() - 1) < 5 * np.sqrt((fourth - 1) / n)


@pytest.mark.parametrize("stddev", [0.0, 1e-3, 2.0])
def test_gaussian_noise_has_its_mean_and_deviation(stddev):
    n = 100_000
    x = jnp.full((n,), 0.5)
    y, dx = noisy(fnn.gaussian_noise, jnp.float32(stddev), x, KEY)
    noise = np.float64(y) - 0.5
    assert abs(noise.mean()) <= 5 * stddev / np.sqrt(n) + 1e-12
    assert abs(noise.std() - stddev) <= 5 * stddev / np.sqrt(2 * n)
    np.testing.assert_array_equal(dx, np.ones(n))
    if stddev:
        z = np.sort(noise / stddev)  # the quantiles of a normal
        np.testing.assert_allclose(z[[n // 40, n // 2, -n // 40]], [-1.96, 0, 1.96], atol=0.05)


def test_gaussian_noise_is_added_before_bfloat16_rounds():
    x = jax.random.normal(KEY, (1000,), jnp.bfloat16)
    noise = noisy(fnn.gaussian_noise, jnp.float32(0.1), jnp.zeros(1000), jax.random.key(1))[0]
    y = noisy(fnn.gaussian_noise, jnp.float32(0.1), x, jax.random.key(1))[0]
    want = asarray(np.asarray(x, np.float32) + np.asarray(noise), jnp.bfloat16)
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("build", [fnn.dropout, spatial, path, fnn.alpha_dropout])
def test_layers_of_one_network_drop_differently(build):
    """One mask twice would keep half; two keep a quarter."""
    net = fnn.serial(build(0.5), build(0.5))
    x = asarray(np.random.default_rng(0).normal(size=(500, 2, 1, 4)), "float32")
    dx = jax.jit(jax.grad(lambda x: net.apply({}, {}, x, key=KEY, train=True)[0].sum()))(x)
    assert abs((np.asarray(dx) != 0).mean() - 0.25) < 0.1
