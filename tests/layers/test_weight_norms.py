"""Kernels divided by a norm of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.layers.support import key, normal


def test_weight_norm():
    net = fnn.weight_norm(fnn.conv(5, (3,), padding="VALID"))
    params, _ = net.init(key(), (1, 6, 2))
    x = normal(2, 6, 2)
    plain, _ = fnn.conv(5, (3,), padding="VALID").init(key(), (1, 6, 2))
    run = jax.jit(net)
    np.testing.assert_allclose(
        run(params, x), fnn.conv(5, (3,), padding="VALID")(plain, x), rtol=1e-4, atol=1e-5
    )
    longer = {**params, "kernel": {**params["kernel"], "direction": 7 * plain["kernel"]}}
    np.testing.assert_allclose(run(longer, x), run(params, x), rtol=1e-4, atol=1e-5)
    zero = jax.tree.map(jnp.zeros_like, params)
    for leaf in jax.tree.leaves(jax.jit(jax.grad(lambda p: net(p, x).sum()))(zero)):
        assert np.isfinite(leaf).all()
    with pytest.raises(errors.OptionError, match="params called scale"):
        fnn.weight_norm(fnn.dense(2), ("scale",)).init(key(), (1, 2))


def test_spectral_norm_is_numpys():
    net = fnn.spectral_norm(fnn.dense(5, use_bias=False), iterations=200)
    params, _ = net.init(key(), (1, 4))
    matrix = np.asarray(params["kernel"], np.float64)
    wanted = matrix / np.linalg.svd(matrix)[1][0]
    np.testing.assert_allclose(jax.jit(net)(params, jnp.eye(4)), wanted, rtol=1e-4, atol=1e-5)
    zero = jax.tree.map(jnp.zeros_like, params)
    assert np.isfinite(jax.grad(lambda p: net(p, jnp.eye(4)).sum())(zero)["kernel"]).all()

    def weighed(matrix):  # by weights that tell its entries apart
        return np.sum(np.arange(20).reshape(4, 5) * matrix / np.linalg.svd(matrix)[1][0])

    grad = jax.grad(lambda p: jnp.sum(jnp.arange(20.0).reshape(4, 5) * net(p, jnp.eye(4))))(params)
    for i in np.ndindex(4, 5):
        step = np.zeros((4, 5))
        step[i] = 1e-6
        slope = (weighed(matrix + step) - weighed(matrix - step)) / 2e-6
        np.testing.assert_allclose(grad["kernel"][i], slope, rtol=1e-3, atol=1e-3)
