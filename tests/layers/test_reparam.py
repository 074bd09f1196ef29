"""Reparametrized layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.testing.layers import (
    check_jit,
    check_rows,
    check_sharded,
    check_specs,
    check_state,
    check_strict,
)
from tests.layers.support import key, normal


def test_reparam_draws_what_the_layer_would():
    plain, _ = fnn.dense(3).init(key(), (1, 4))
    net = fnn.reparam(fnn.dense(3), lambda p: {"log": jax.tree.map(jnp.exp, p)},
                      lambda p: jax.tree.map(jnp.log, p["log"]))  # fmt: skip
    params, _ = net.init(key(), (1, 4))
    np.testing.assert_allclose(params["log"]["kernel"], np.exp(plain["kernel"]), rtol=1e-6)
    x = normal(2, 4)
    np.testing.assert_allclose(net(params, x), np.asarray(x) @ plain["kernel"], atol=1e-5)
    with pytest.raises(errors.ParamsError, match="^dense: .*log"):
        net(plain, x)
    with pytest.raises(errors.ParamsError, match="encode to return a dict"):
        fnn.reparam(fnn.dense(3), lambda p: p["kernel"], lambda p: p).init(key(), (1, 4))


def test_encode_with_a_key_draws_anew_for_each_layer_and_seed():
    def noisy(layer):
        return fnn.reparam(
            layer,
            lambda p, k: {**p, "noise": jax.random.normal(k, (3,))},
            lambda p: {"kernel": p["kernel"], "bias": p["bias"] + p["noise"]},
        )

    net = fnn.serial(noisy(fnn.dense(3)), noisy(fnn.dense(3)))
    a, _ = net.init(key(), (1, 3))
    b, _ = jax.jit(lambda k: net.init(k, (1, 3)))(key())
    c, _ = net.init(key(1), (1, 3))
    np.testing.assert_array_equal(a["dense1"]["noise"], b["dense1"]["noise"])
    assert not np.allclose(a["dense1"]["noise"], a["dense2"]["noise"])
    assert not np.allclose(a["dense1"]["noise"], c["dense1"]["noise"])


def test_reparametrizations_hold_the_contract_but_for_what_they_stop():
    for net in (
        fnn.lora(fnn.serial(fnn.dense(3), fnn.dense(2)), 2),
        fnn.prune(fnn.dense(3), 0.5),
        fnn.quantize(fnn.dense(3), 4),
        fnn.stored(fnn.dense(3), jnp.int4, group_size=3),
        fnn.spectral_norm(fnn.dense(3)),
    ):
        params, state = net.init(key(), (8, 4))
        xs = (normal(8, 4),)
        for check in (check_specs, check_jit, check_state, check_strict, check_rows, check_sharded):
            check(net, params, state, xs)
