"""The first tensor that is not finite, forwards and backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.analysis import nan_report


def block(features=4):
    return fnn.residual(fnn.serial(fnn.dense(features), jnp.tanh, fnn.dropout(0.5)))


def key(i=0):
    return jax.random.key(i)


def log_net():
    return fnn.serial(fnn.dense(4), jnp.log, fnn.dense(2))


def test_nothing_to_report():
    net = fnn.serial(fnn.repeat(block(), 2), fnn.batch_norm())
    params, state = net.init(key(), (5, 4))
    options = {"state": state, "key": key(1), "train": True}
    assert nan_report(net, params, jnp.ones((5, 4)), **options) is None


def test_forward_the_first_that_is_bad():
    net = log_net()
    params, _ = net.init(key(), (3, 4))
    found = nan_report(net, params, jax.random.normal(key(1), (3, 4)))
    assert found[:3] == ("log_1", "output", ()) and found.nan > 0 and found.size == 12
    params["dense2"]["kernel"] = params["dense2"]["kernel"].at[0, 0].set(jnp.inf)
    safe = fnn.swap(net, {"log_1": jnp.tanh})
    assert nan_report(safe, params, jnp.ones((3, 4))) == (
        "dense2",
        "kernel",
        (),
        0,
        1,
        8,
    )
    bad = jnp.ones((3, 4)).at[0, 0].set(jnp.nan)
    assert nan_report(safe, params, bad)[:2] == ("", "input")


def test_backward_where_the_gradient_begins_to_be_bad():
    net = fnn.serial(fnn.dense(4), lambda x: jnp.sqrt(jnp.abs(x)), fnn.dense(2))
    params, _ = net.init(key(), (3, 4))
    found = nan_report(net, params, jnp.zeros((3, 4)))  # the root's slope at 0 is infinite
    assert found[:2] == ("lambda_1", "gradient of input")
    fine = nan_report(net, params, jax.random.normal(key(1), (3, 4)), loss=jnp.mean)
    assert fine is None
    found = nan_report(
        net, params, jax.random.normal(key(1), (3, 4)), loss=lambda y: jnp.sqrt(0 * y.sum())
    )
    assert found[:2] == ("", "gradient of output")


def test_the_member_of_a_stack():
    net = fnn.serial(first=fnn.dense(4), many=fnn.repeat(fnn.serial(fnn.dense(4), jnp.tanh), 5))
    params, _ = net.init(key(), (3, 4))
    kernel = params["many"]["dense1"]["kernel"]
    params["many"]["dense1"]["kernel"] = kernel.at[3, 1, 1].set(jnp.nan)
    found = nan_report(net, params, jnp.ones((3, 4)))
    assert found == ("many/dense1", "kernel", (3,), 1, 0, 16)
    assert str(found) == "many/dense1 (member 3): kernel has 1 NaN, 0 inf of 16"
    params["many"]["dense1"]["kernel"] = kernel.at[2].set(3e38)
    found = nan_report(net, params, jnp.ones((3, 4)))
    assert found is None or found[:3] == ("many/dense1", "output", (2,))


def test_layers_inside_a_transform_of_the_body():
    @fnn.compose(inner=log_net(), out=fnn.dense(1))
    def net(f, x):
        return f.out(jax.lax.scan(lambda c, _: (jnp.tanh(c), f.inner(c)), x, length=2)[1][0])

    params, _ = net.init(key(), (3, 4))
    found = nan_report(net, params, -jnp.ones((3, 4)))
    assert found[:2] == ("out", "input")


def test_inside_reparametrizations():
    inside = fnn.serial(fnn.dense(3), jnp.log, fnn.batch_norm())
    x = jax.random.normal(key(1), (4, 3))
    for net in (
        fnn.lora(inside, 2),
        fnn.weight_norm(inside),
        fnn.reparam(inside, lambda p: {"half": p}, lambda p: p["half"]),
    ):
        params, state = net.init(key(), x)
        found = nan_report(net, params, x, state=state)
        assert found[:2] == ("log_1", "output")
        assert fnn.tap(net, "log_1")(params, x, state=state)[1]["log_1"].shape == (4, 3)
    with pytest.raises(errors.ShapeError, match="nan_report: expected a scalar loss"):
        nan_report(net, params, jnp.ones((4, 3)), state=state, loss=lambda y: y)


def test_nan_is_found_where_jax_raises_at_it():
    net = fnn.serial(fnn.dense(3), jnp.log)
    params, _ = net.init(jax.random.key(0), (1, 2))
    x = np.full((1, 2), np.nan, np.float32)
    with jax.debug_nans(True):
        assert nan_report(net, params, x).nan == 2
