"""Outputs of the layers inside a network, and layers exchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors


def block(features=4):
    return fnn.residual(fnn.serial(fnn.dense(features), jnp.tanh, fnn.dropout(0.5)))


def key(i=0):
    return jax.random.key(i)


def test_tap_gives_what_the_layers_gave():
    net = fnn.serial(fnn.dense(4), jnp.tanh, head=fnn.dense(2))
    params, _ = net.init(key(), (1, 3))
    x = jax.random.normal(key(1), (5, 3))
    y, outputs = jax.jit(fnn.tap(net, "dense1", "*_1", "head"))(params, x)
    first = np.asarray(x) @ np.asarray(params["dense1"]["kernel"])
    np.testing.assert_allclose(outputs["dense1"], first, rtol=1e-5)
    np.testing.assert_allclose(outputs["tanh_1"], np.tanh(first), rtol=1e-5)
    assert set(outputs) == {"dense1", "tanh_1", "head"} and (outputs["head"] == y).all()
    assert set(fnn.tap(net)(params, x)[1]) == {"dense1", "tanh_1", "head", ""}
    grad = jax.grad(lambda p: fnn.tap(net, "dense1")(p, x)[1]["dense1"].sum())(params)
    np.testing.assert_allclose(grad["dense1"]["bias"], 5 * np.ones(4))


def test_tap_out_of_repeat_and_ensemble_with_state_and_keys():
    inner = fnn.serial(fnn.dense(4), fnn.batch_norm(), fnn.dropout(0.5))
    net = fnn.serial(many=fnn.repeat(inner, 3), side=fnn.ensemble(fnn.dense(2), 5))
    params, state = net.init(key(), (6, 4))
    x = jax.random.normal(key(1), (6, 4))
    tapped = fnn.tap(net, "many/*", "side")
    (y, outputs), new = tapped.apply(params, state, x, key=key(2), train=True)
    assert outputs["many/dense1"].shape == (3, 6, 4) and outputs["side"].shape == (5, 6, 2)
    wanted, after = net.apply(params, state, x, key=key(2), train=True)
    np.testing.assert_array_equal(y, wanted)
    jax.tree.map(np.testing.assert_array_equal, new, after)  # the state comes back
    member = jax.tree.map(lambda a: a[1], params["many"]["dense1"])
    dropped = outputs["many/dropout1"][0]
    np.testing.assert_allclose(outputs["many/dense1"][1], dropped @ member["kernel"], rtol=1e-5)


def test_tap_of_wrong_paths_and_missing_state():
    net = fnn.serial(fnn.dense(4), fnn.batch_norm())
    params, _ = net.init(key(), (6, 4))
    with pytest.raises(errors.OptionError, match="tap: .*dense1, batch_norm1, got conv"):
        fnn.tap(net, "conv*")
    with pytest.raises(errors.ParamsError, match="batch_norm1: .*state=state"):
        fnn.tap(net)(params, jnp.ones((6, 4)))
    with pytest.raises(errors.OptionError, match="swap: "):
        fnn.swap(net, {"dense2": jnp.tanh})


def test_swap_leaves_the_rest():
    net = fnn.serial(fnn.repeat(block(), 3), head=fnn.dense(2))
    new = fnn.swap(net, {"repeat1/layer/tanh_1": jnp.sin, "head": fnn.dense(5)})
    params, _ = net.init(key(), (1, 4))
    swapped, _ = new.init(key(), (1, 4))
    assert swapped["head"]["kernel"].shape == (4, 5)
    jax.tree.map(np.testing.assert_array_equal, swapped["repeat1"], params["repeat1"])
    x = jnp.ones((1, 4))
    for i in range(3):
        dense = jax.tree.map(lambda a, i=i: a[i], params["repeat1"]["layer"]["dense1"])
        x = x + jnp.sin(x @ dense["kernel"])
    _, outputs = fnn.tap(new, "repeat1")(swapped, jnp.ones((1, 4)))
    np.testing.assert_allclose(outputs["repeat1"], x, rtol=1e-5)
