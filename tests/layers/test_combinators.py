"""Layers side by side and around a shortcut."""

import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.layers.support import key, normal


def test_parallel_is_a_dict_of_what_each_gives():
    net = fnn.parallel(fnn.dense(2), fnn.dense(3), act=jnp.sin)
    params, _ = net.init(key(), (1, 4))
    x = normal(5, 4)
    y = net(params, x)
    assert list(y) == ["dense1", "dense2", "act"]
    for name in ("dense1", "dense2"):
        np.testing.assert_allclose(y[name], np.asarray(x) @ params[name]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(y["act"], np.sin(x), rtol=1e-6)
    joined = fnn.serial(net, lambda y: y["dense1"] + y["dense2"][:, :2])
    assert joined.init(key(), (1, 4))[0]["parallel1"]["dense2"]["kernel"].shape == (4, 3)


def test_residual_adds_and_never_broadcasts():
    net = fnn.residual(fnn.dense(4))
    params, _ = net.init(key(), (1, 4))
    x = normal(5, 4)
    wanted = np.asarray(x) + np.asarray(x) @ params["layer"]["kernel"]
    np.testing.assert_allclose(net(params, x), wanted, rtol=1e-5)
    short = fnn.residual(fnn.dense(3), fnn.dense(3))
    params, _ = short.init(key(), (1, 4))
    wanted = np.asarray(x) @ (params["layer"]["kernel"] + params["shortcut"]["kernel"])
    np.testing.assert_allclose(short(params, x), wanted, rtol=1e-5)
    with pytest.raises(errors.ShapeError, match="shortcut"):
        fnn.residual(fnn.dense(1)).init(key(), (1, 4))
    with pytest.raises(errors.DtypeError, match="bfloat16"):
        fnn.residual(lambda x: x.astype(jnp.bfloat16))({}, x)
