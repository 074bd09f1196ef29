"""Kernels pruned and quantized."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.layers.support import key


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_prune_holds_the_smallest_at_zero(fraction):
    net = fnn.prune(fnn.dense(5, use_bias=False), fraction)
    params, state = net.init(key(), (1, 4))
    value = np.asarray(params["kernel"]["value"])
    dropped = round(fraction * value.size)
    least = set(np.argsort(np.abs(value).ravel())[:dropped])
    wanted = np.where([i in least for i in range(20)], 0, value.ravel()).reshape(4, 5)
    np.testing.assert_array_equal(net(params, jnp.eye(4), state=state), wanted)
    grads = jax.grad(lambda p: net(p, jnp.eye(4), state=state).sum())(params)["kernel"]
    np.testing.assert_array_equal(grads["value"], wanted != 0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantize_rounds_and_lets_the_gradient_through(bits):
    net = fnn.quantize(fnn.dense(3, use_bias=False), bits)
    params, _ = net.init(key(), (1, 50))
    kernel = np.asarray(params["kernel"], np.float64)
    step = np.abs(kernel).max(0) / (2 ** (bits - 1) - 1)
    y = np.asarray(net(params, jnp.eye(50)))
    np.testing.assert_allclose(y, np.round(kernel / step) * step, atol=1e-5)
    assert len(np.unique(np.round(y[:, 0] / step[0]))) <= 2**bits - 1
    grad = jax.grad(lambda p: net(p, jnp.eye(50)).sum())(params)["kernel"]
    np.testing.assert_array_equal(grad, np.ones((50, 3)))
