"""A carry kept in the state."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from tests.layers.recurrent.support import C, H, close, key, normal, same
from tests.support import asarray


def test_a_stateful_layer_starts_where_the_last_call_ended():
    plain = fnn.lstm(H, return_carry=True)
    net = fnn.lstm(H, stateful=True)
    x = normal(2, 6, C)
    params, state = net.init(key(), x)
    for train in (False, True):
        run = jax.jit(partial(net.apply, key=key(), train=train))
        y1, after = run(params, state, x[:, :3])
        y2, last = run(params, after, x[:, 3:])
        close(jnp.concatenate([y1, y2], 1), plain(params, x)[0])
        again, _ = run(params, fnn.forget(last), x[:, :3])
        close(again, y1)

    def loss(params, first):
        _, state1 = net.apply(params, state, first)
        y, _ = net.apply(params, state1, x[:, 3:])
        return jnp.sum(y**2)

    np.testing.assert_array_equal(jax.grad(loss, 1)(params, x[:, :3]), 0)
    y, carry = plain(params, x[:, :3])
    alone = jax.grad(lambda p: jnp.sum(plain(p, x[:, 3:], None, carry)[0] ** 2))(params)
    close(jax.grad(loss)(params, x[:, :3]), alone)


def test_forget_reaches_every_layer_and_a_learned_carry_comes_back():
    cell = fnn.cells.gru(H, learned_carry=True)
    net = fnn.serial(fnn.rnn(cell, stateful=True), fnn.batch_norm(), fnn.gru(2, stateful=True))
    x = normal(2, 3, C)
    params, state = net.init(key(), x)
    params["rnn1"]["first_h"] = asarray([0.5, -0.5, 0.1])
    run = jax.jit(net.apply)
    y, after = run(params, state, x)
    moved, _ = run(params, after, x)
    assert abs(moved - y).max() > 1e-3
    fresh = fnn.forget(after)
    close(run(params, fresh, x)[0], y)
    assert jax.tree.structure(fresh) == jax.tree.structure(after)
    same(fresh["batch_norm1"], after["batch_norm1"])
    grads = jax.jit(jax.grad(lambda p, s: jnp.sum(net.apply(p, s, x)[0] ** 2)))
    assert np.any(grads(params, state)["rnn1"]["first_h"])
    assert not np.any(grads(params, after)["rnn1"]["first_h"])


def test_state_that_is_given_a_carry_takes_it():
    net = fnn.gru(H, stateful=True)
    x, begin = normal(2, 3, C), normal(2, H)
    params, state = net.init(key(), x)
    _, after = net.apply(params, state, x)
    y, _ = net.apply(params, after, x, None, begin)
    close(y, fnn.gru(H)(params, x, None, begin))
