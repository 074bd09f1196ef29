"""Training over chunks of a long sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.layers.recurrent.support import close, key, normal
from tests.support import assert_teaches

E, H, T = 2, 3, 6  # values of x, features, steps

NET = fnn.serial(rnn=fnn.lstm(H, stateful=True), drop=fnn.dropout(0.2), head=fnn.dense(1))


def loss_fn(params, state, batch, key):
    y, state = NET.apply(params, state, batch["x"], key=key, train=True)
    error = jnp.mean((y - batch["y"]) ** 2)
    return error, (state, {"largest": jnp.max(jnp.abs(y))})


def chunks_of(batch, length):
    steps = batch["x"].shape[1]
    return [
        jax.tree.map(lambda a, t=t: a[:, t : t + length], batch) for t in range(0, steps, length)
    ]


@pytest.mark.parametrize("length", [2, 6])
def test_tbptt_is_the_loop_over_chunks(length):
    tx = fnn.optim.adam(0.05)
    step = fnn.train.step(loss_fn, tx)
    batch = {"x": normal(4, T, E), "y": normal(4, T, 1, seed=2)}
    begin = fnn.train.init(NET, tx, key(), batch["x"][:, :length])
    ts, metrics = fnn.train.tbptt(step, length)(begin, batch)
    wanted, seen = begin, []
    for chunk in chunks_of(batch, length):
        wanted, own = step(wanted, chunk)
        seen.append(own)
    assert set(metrics) == {"loss", "largest"} and int(ts.step) == T // length
    for name in metrics:
        close(metrics[name], np.array([own[name] for own in seen]))
    for part in ("params", "state", "opt_state"):
        ours, theirs = (jax.tree.leaves(getattr(s, part)) for s in (ts, wanted))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_tbptt_carries_the_state_from_chunk_to_chunk_without_gradient():
    """One chunk's loss looks at the chunk before through the carry, and is not blamed on it."""
    net = fnn.gru(1, stateful=True)
    x = normal(2, 4, 1)
    tx = fnn.optim.sgd(0.0)

    def loss_fn(params, state, batch, key):
        y, state = net.apply(params, state, batch, train=True)
        return jnp.sum(y**2), (state, {"y": y})

    begin = fnn.train.init(net, tx, key(), x[:, :2])
    _, metrics = fnn.train.tbptt(fnn.train.step(loss_fn, tx), 2)(begin, x)
    whole = fnn.gru(1)(begin.params, x)
    assert metrics["y"].shape == (2, 2, 2, 1)  # [chunks, B, steps, features]
    close(jnp.moveaxis(metrics["y"], 0, 1).reshape(2, 4, 1), whole)
    rate = 0.1
    moved, _ = fnn.train.tbptt(fnn.train.step(loss_fn, fnn.optim.sgd(rate)), 2)(begin, x)
    plain, params, carry = fnn.gru(1, return_carry=True), begin.params, None
    for t in (0, 2):
        grads = jax.grad(
            lambda p, t=t, carry=carry: jnp.sum(plain(p, x[:, t : t + 2], None, carry)[0] ** 2)
        )(params)
        _, carry = plain(params, x[:, t : t + 2], None, carry)
        params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
    close(moved.params, jax.tree.map(np.float64, params))


def test_wrong_inputs_of_tbptt():
    tx = fnn.optim.sgd(0.1)
    step = fnn.train.step(loss_fn, tx)
    for length in (0, -1, 2.5, True, None, "all"):
        with pytest.raises(errors.OptionError):
            fnn.train.tbptt(step, length)
    with pytest.raises(errors.FnnError):
        fnn.train.tbptt(None, 2)


CHUNKED = {"x": np.ones((4, T, E), np.float32), "y": np.ones((4, T, 1), np.float32)}
UNCUT = {
    "other steps than x": CHUNKED | {"y": CHUNKED["y"][:, :4]},
    "no time axis": CHUNKED | {"label": np.ones(4, np.float32)},
    "steps that are no chunks": jax.tree.map(lambda a: a[:, :5], CHUNKED),
    "no steps": jax.tree.map(lambda a: a[:, :0], CHUNKED),
    "no arrays": {"x": "text", "y": None},
}


@pytest.mark.parametrize("name", UNCUT)
def test_batches_that_cannot_be_cut_are_refused(name):
    tx = fnn.optim.sgd(0.1)
    begin = fnn.train.init(NET, tx, key(), (4, 2, E))
    run = fnn.train.tbptt(fnn.train.step(loss_fn, tx), 2)
    with pytest.raises(errors.FnnError) as found:
        run(begin, UNCUT[name])
    assert_teaches(found.value, found.value.path or found.value.layer)
