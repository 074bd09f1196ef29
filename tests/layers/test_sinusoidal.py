"""Sines and cosines of numbers and positions, against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.support import asarray


def loop(x, features, base, interleaved):
    """[...] -> [..., features], one value at a time."""
    x = np.asarray(x, np.float64)
    y = np.zeros((*x.shape, features))
    half = features // 2
    for i in np.ndindex(x.shape):
        for k in range(half):
            angle = x[i] / base ** (2 * k / features)
            y[i][2 * k if interleaved else k] = np.sin(angle)
            y[i][2 * k + 1 if interleaved else half + k] = np.cos(angle)
    return y


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("features, base", [(2, 10.0), (6, 10_000.0)])
def test_sinusoidal_is_the_loop(interleaved, features, base):
    net = fnn.sinusoidal(features, base=base, interleaved=interleaved)
    for x in (np.array([[0, 1, 7], [99, 500, -3]]), np.float32(2.5), np.linspace(0, 9, 4)):
        y = jax.jit(net)({}, asarray(x))
        assert y.dtype == jnp.float32
        np.testing.assert_allclose(y, loop(x, features, base, interleaved), atol=1e-4)
    with jax.enable_x64(True):
        late = np.array([1e6, -1e6])
        y = jax.jit(net)({}, asarray(late))
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, loop(late, features, base, interleaved), atol=1e-8)


def test_time_embeddings_are_those_of_ddpm():
    """The published code: concatenated, with log(10000) / (half - 1)."""
    steps, features = np.array([0, 3, 250, 999]), 8
    half = features // 2
    speeds = np.exp(-np.log(10_000) / (half - 1) * np.arange(half))
    angles = steps[:, None] * speeds
    wanted = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    base = 10_000 ** (half / (half - 1))
    net = fnn.sinusoidal(features, base=base, interleaved=False)
    np.testing.assert_allclose(net({}, asarray(steps)), wanted, atol=2e-4)


def test_positional_encoding_adds_them():
    x = np.random.default_rng(0).normal(size=(2, 1, 5, 4)).astype(np.float32)
    wanted = x + loop(np.arange(5), 4, 10_000.0, True)
    net = jax.jit(fnn.positional_encoding())
    np.testing.assert_allclose(net({}, x), wanted, atol=1e-5)
    np.testing.assert_allclose(net({}, x[0, 0]), wanted[0, 0], atol=1e-5)
    late = x[0, 0, 3:] + fnn.sinusoidal(4)({}, jnp.arange(3, 5))
    np.testing.assert_allclose(late, wanted[0, 0, 3:], atol=1e-5)
    low = net({}, asarray(x, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(low), wanted, atol=0.05)


def test_wrong_options_and_inputs():
    for wrong in ({"features": 3}, {"features": 0}, {"base": -1.0}, {"base": "x"}, {"dtype": int}):
        with pytest.raises(errors.OptionError, match="^sinusoidal: "):
            fnn.sinusoidal(**{"features": 4, **wrong})
    with pytest.raises(errors.DtypeError, match="^sinusoidal: "):
        fnn.sinusoidal(4)({}, jnp.ones(3, bool))
    for x, error in ((jnp.ones((2, 3)), errors.ShapeError), (jnp.ones(4), errors.ShapeError)):
        with pytest.raises(error, match="^positional_encoding: "):
            fnn.positional_encoding()({}, x)
