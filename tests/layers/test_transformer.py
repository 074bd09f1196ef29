"""The block that transformers repeat, against its equations."""

import jax
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.layers import oracles
from tests.layers.support import biased


def test_block_is_its_equations():
    net = fnn.transformer_block(4, 2, hidden=6, gated=True, activation=jax.nn.silu)
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    params = biased(net.init(jax.random.key(0), x)[0], 1)

    def norm(p, x):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return centred / deviation * p["scale"] + p["bias"]

    def affine(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    mask = np.ones((2, 3, 3), bool)
    h = np.stack(
        [
            row + oracles.attention(params["attention"], z, z, 2, 2, False, None, mask)
            for row, z in zip(np.float64(x), norm(params["norm1"], np.float64(x)), strict=True)
        ]
    )
    z = norm(params["norm2"], h)
    gate = affine("gate", z)
    wanted = h + affine("down", gate / (1 + np.exp(-gate)) * affine("up", z))
    np.testing.assert_allclose(net(params, x), wanted, rtol=1e-3, atol=1e-3)


def test_block_passes_options_on():
    net = fnn.transformer_block(
        8, 2, head_dim=3, qk_norm=True, distances=fnn.relative_bias(2), soft_cap=5.0, block=2
    )
    specs = net.specs((2, 3, 8))[0]["attention"]
    assert specs["q"]["kernel"].shape == (8, 6) and specs["k_norm"]["scale"].shape == (3,)
    assert specs["distances"]["bias"].shape == (32, 2)
    with pytest.raises(TypeError, match="attention.* 'far'"):
        fnn.transformer_block(8, 2, far=True)


def test_block_drops_each_half_by_its_own_mask():
    net = fnn.transformer_block(4, 2, rate=0.5)
    params, _ = net.init(jax.random.key(0), (2, 3, 4))
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    first, _ = net.apply(params, {}, x, key=jax.random.key(2), train=True)
    again, _ = net.apply(params, {}, x, key=jax.random.key(2), train=True)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, net(params, x))
    with pytest.raises(errors.RandomKeyError, match="drop"):
        net.apply(params, {}, x, train=True)
