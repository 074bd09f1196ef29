"""Convolutions whose kernel is not shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from tests.layers.conv import oracles
from tests.layers.conv.support import FLOATS, assert_bilinear, sliding_cases
from tests.layers.support import seeds


@given(
    case=sliding_cases(),
    features=st.integers(1, 2),
    bias=st.booleans(),
    dtype=st.sampled_from(FLOATS),
    seed=seeds,
)
def test_local_conv_is_the_loop(case, features, bias, dtype, seed):
    size, options, shape = case
    draw, spatial, cin = np.random.default_rng(seed).normal, shape[-len(size) - 1 : -1], shape[-1]
    layer = fnn.local_conv(features, size, use_bias=bias, **options)
    out, terms = oracles.local_terms(spatial, size, cin, features, **options)
    params = {"kernel": draw(size=(*out[:-1], *size, cin, features)), "bias": draw(size=out)}
    if not bias:
        del params["bias"]
    assert_bilinear(layer, draw(size=shape), params, dtype, out, terms)


def test_local_conv_draws_each_place_by_itself():
    """Each place's kernel has the variance of `conv`'s, and no two are the same."""
    layer = fnn.local_conv(4, (3, 3))
    kernel = np.asarray(layer.init(jax.random.key(0), (1, 6, 5, 30))[0]["kernel"])
    assert kernel.shape == (6, 5, 3, 3, 30, 4)
    places = kernel.reshape(30, -1)
    assert abs(kernel.var() * 270 - 1) < 5 * np.sqrt(2 / kernel.size)
    assert np.abs(np.corrcoef(places) - np.eye(30)).max() < 6 / np.sqrt(places.shape[1])


def test_local_conv_refuses_another_size_of_image():
    layer = fnn.local_conv(2, (3,))
    params, _ = layer.init(jax.random.key(0), (1, 6, 2))
    with pytest.raises(errors.ParamsError, match=r"kernel \(7, 3, 2, 2\) for x \(1, 7, 2\)"):
        layer(params, jnp.ones((1, 7, 2)))
