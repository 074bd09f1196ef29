"""One step: its formula, its state, its metrics and its errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn import errors, optim, train
from tests.support import asarray, python
from tests.train.support import assert_same_bits, conv_net, data, dense_net, setup


def test_a_step_is_the_formula():
    """Least squares by gradient descent, against the closed form of one step in float64."""
    net, tx = fnn.dense(2), fnn.optim.sgd(0.1)

    def loss_fn(params, state, batch, key):
        x, y = batch
        return jnp.mean((net(params, x) - y) ** 2), (state, {"twice": jnp.float32(2)})

    ts = train.init(net, tx, jax.random.key(0), (1, 3))
    x, y = (
        np.asarray(jax.random.normal(jax.random.key(i), s)) for i, s in ((1, (5, 3)), (2, (5, 2)))
    )
    new, metrics = train.step(loss_fn, tx)(ts, (x, y))
    w, b = (np.asarray(ts.params[n], np.float64) for n in ("kernel", "bias"))
    error = x @ w + b - y
    np.testing.assert_allclose(metrics["loss"], np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(new.params["kernel"], w - 0.1 * x.T @ error * 2 / 10, rtol=1e-4)
    np.testing.assert_allclose(new.params["bias"], b - 0.1 * error.sum(0) * 2 / 10, rtol=1e-4)
    assert new.step == 1 and metrics["twice"] == 2 and ts.step == 0


def test_init_is_the_networks_own():
    ts, _ = setup()
    assert_same_bits(ts.params, dense_net().init(jax.random.key(0), (1, 4))[0])


def test_adam_step_equals_optax():
    net = dense_net()
    ours, _ = setup(net, fnn.optim.adam(1e-2))
    theirs, _ = setup(net, optax.adam(1e-2))

    def loss_fn(params, state, batch, key):
        return jnp.mean(net(params, batch) ** 2), (state, {})

    x = data()["image"]
    our_step, their_step = (train.step(loss_fn, tx.adam(1e-2)) for tx in (optim, optax))
    for _ in range(5):
        ours, _ = our_step(ours, x)
        with jax.numpy_dtype_promotion("standard"):  # which optax needs
            theirs, _ = their_step(theirs, x)
    chex.assert_trees_all_close(ours.params, theirs.params, rtol=1e-5, atol=1e-6)


def test_the_step_gives_the_transform_value_grad_and_value_fn():
    seen = {}

    def update(grads, opt_state, params=None, *, value, grad, value_fn):
        seen["same"] = grad is grads
        return jax.tree.map(lambda g: -0.1 * g, grads), (value, value_fn(params))

    def update_all(grads, opt_state, params=None, **extra):
        return update(grads, opt_state, params, **extra)

    tx = fnn.optim.Transform(lambda params: (jnp.zeros(()), jnp.zeros(())), update_all)
    ts, step = setup(tx=tx)
    ts, metrics = step(ts, data())
    assert seen["same"] and ts.opt_state[0] == metrics["loss"] == ts.opt_state[1]


def test_state_and_randomness_move_on():
    ts, step = setup(conv_net(), shape=(4, 4, 1))
    one, _ = step(ts, data((4, 4, 1)))
    assert not jnp.array_equal(one.state["batch_norm1"]["mean"], ts.state["batch_norm1"]["mean"])
    net = fnn.serial(drop=fnn.dropout(0.5), head=fnn.dense(1, kernel_init=fnn.initializers.ones))

    def loss_fn(params, state, batch, key):
        y, state = net.apply(params, state, batch, key=key, train=True)
        return jnp.sum(y), (state, {})

    tx = fnn.optim.sgd(0.0)
    ts, step = train.init(net, tx, jax.random.key(0), (1, 64)), train.step(loss_fn, tx)
    losses = []
    for _ in range(3):
        ts, metrics = step(ts, jnp.ones((1, 64)))
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) > 1  # a new mask each step


def test_an_ensemble_is_a_vmapped_step():
    net, tx = dense_net(), fnn.optim.adam(1e-2)
    _, step = setup(net, tx)
    keys = jax.random.split(jax.random.key(1), 3)
    many = jax.vmap(lambda key: train.init(net, tx, key, (1, 4)))(keys)
    batch = data()
    together, metrics = jax.vmap(step, in_axes=(0, None))(many, batch)
    for i in range(3):
        alone, own = step(train.init(net, tx, keys[i], (1, 4)), batch)
        np.testing.assert_allclose(metrics["loss"][i], own["loss"], rtol=1e-5)
        lane = jax.tree.map(lambda a, i=i: a[i], together.params)
        chex.assert_trees_all_close(lane, alone.params, rtol=1e-4, atol=1e-5)


def scan_and_loop():
    ts, step = setup()
    batches = jax.tree.map(lambda x: jnp.stack([x] * 6), data())
    scanned, metrics = jax.jit(lambda ts: jax.lax.scan(step, ts, batches))(ts)
    for _ in range(6):
        ts, last = step(ts, data())
    assert_same_bits((scanned, metrics["loss"][-1]), (ts, last["loss"]))


def test_a_scan_of_steps_equals_the_loop_bitwise():
    """In programs compiled as a user's are: those that `make test` compiles faster differ."""
    python("from tests.train import test_step; test_step.scan_and_loop()", XLA_FLAGS="")


def test_the_learning_rate_is_data():
    net, batch = dense_net(), data()

    @jax.jit
    def final(rate):
        tx = optim.adam(rate)
        ts = train.init(net, tx, jax.random.key(0), (1, 4))
        step = train.step(train.supervised(net, fnn.losses.softmax_cross_entropy), tx)
        for _ in range(3):
            ts, metrics = step(ts, batch)
        return metrics["loss"]

    rates = asarray([1e-3, 1e-1])
    np.testing.assert_allclose(jax.vmap(final)(rates), [final(r) for r in rates], rtol=1e-4)
    slope = jax.grad(final)(0.01)
    numeric = (final(0.01 + 1e-3) - final(0.01 - 1e-3)) / 2e-3
    np.testing.assert_allclose(slope, numeric, rtol=0.02)


def test_the_steps_errors():
    ts, _ = setup()
    tx = fnn.optim.adam(1e-2)

    def unreduced(params, state, batch, key):
        return jnp.zeros(3), (state, {})

    with pytest.raises(errors.ShapeError, match=r"scalar loss.*jnp.mean"):
        train.step(unreduced, tx)(ts, None)
    twice = train.step(lambda p, s, b, k: (jnp.zeros(()), (s, {"loss": 1.0})), tx)
    with pytest.raises(errors.ParamsError, match="another name"):
        twice(ts, None)
    with pytest.raises(errors.InputError, match="image, label.*names="):
        setup()[1](ts, {"image": jnp.ones((2, 4))})
    with pytest.raises(errors.InputError, match="pair"):
        setup()[1](ts, jnp.ones((2, 4)))


def test_what_a_loss_function_returns():
    ts, _ = setup()
    tx = fnn.optim.adam(1e-2)
    zero = jnp.zeros(())
    for wrong in (zero, (zero, {}), (zero, {}, {}), (zero, ({}, {}, {}))):
        with pytest.raises(errors.InputError, match=r"loss_fn to return \(loss, \(state, metrics"):
            train.step(lambda p, s, b, k, w=wrong: w, tx)(ts, None)
    with pytest.raises(errors.ParamsError, match="before the metrics"):
        train.step(lambda p, s, b, k: (zero, ({"mae": zero}, s)), tx)(ts, None)
    with pytest.raises(errors.InputError, match="a TrainState"):
        setup()[1](ts.params, data())
    with pytest.raises(errors.OptionError, match="transform"):
        train.init(dense_net(), 1e-3, jax.random.key(0), (1, 4))
    with pytest.raises(errors.InputError, match="metrics to be a dict"):
        train.supervised(dense_net(), fnn.losses.softmax_cross_entropy, [fnn.metrics.accuracy()])


def test_the_rate_and_the_norm_of_the_gradient_among_the_metrics():
    schedule = optim.schedules.linear(1.0, 0.0, 4)
    tx = optim.sgd(schedule)

    def loss_fn(params, state, batch, key):
        return jnp.sum(params * batch), (state, {"own": batch[0]})

    params = jnp.zeros(2)
    ts = fnn.train.TrainState(jnp.int32(0), params, {}, tx.init(params), jax.random.key(0))
    step = fnn.train.step(loss_fn, tx, learning_rate=schedule, grad_norm=True)
    for i in range(3):
        ts, metrics = step(ts, asarray([3.0, 4.0]))
        assert metrics["learning_rate"] == 1 - i / 4
        assert metrics["grad_norm"] == 5
    assert sorted(metrics) == ["grad_norm", "learning_rate", "loss", "own"]
    clash = fnn.train.step(
        lambda p, s, b, k: (jnp.sum(p), (s, {"grad_norm": b[0]})), tx, grad_norm=True
    )
    with pytest.raises(fnn.FnnError, match="metrics without grad_norm"):
        clash(ts, jnp.ones(2))
