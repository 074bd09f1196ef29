"""A whole run as one function: it is the loop of its steps, goes on, maps and has derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.train.support import assert_same_bits, looped

N, SIZE = 23, 5  # four batches an epoch, three examples left out
DATA = {
    "image": np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32),
    "label": np.arange(N, dtype=np.int32) % 3,
}
NET = fnn.serial(fnn.dense(8), jnp.tanh, fnn.dropout(0.2), fnn.dense(3))
TX = fnn.optim.adam(1e-2)
STEP = fnn.train.step(fnn.train.supervised(NET, fnn.losses.softmax_cross_entropy), TX)
RUN = jax.jit(fnn.train.run, static_argnums=(0,), static_argnames=("steps", "batch_size"))


def start(seed=0):
    return fnn.train.init(NET, TX, jax.random.key(seed), DATA["image"][:1])


def by_hand(steps):
    return looped(STEP, start(), DATA, SIZE, steps)


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 11])
def test_a_run_is_the_loop_of_its_steps_bitwise(steps):
    ts, history = RUN(STEP, start(), DATA, steps=steps, batch_size=SIZE)
    wanted, losses = by_hand(steps)
    assert_same_bits(ts, wanted)
    np.testing.assert_array_equal(history["train"]["loss"], losses)


def test_a_run_is_what_fit_does():
    ts, history = RUN(STEP, start(), DATA, steps=8, batch_size=SIZE)
    fitted, shown = fnn.train.fit(STEP, start(), DATA, epochs=2, batch_size=SIZE, progress=False)
    assert_same_bits(ts, fitted)
    np.testing.assert_array_equal(history["train"]["loss"], shown["train"]["loss"])


def test_a_step_that_counts_several_sees_the_batches_of_fit_too():
    """As one of `fnn.train.tbptt` does, which updates more than once for a batch."""

    def twice(ts, batch):
        ts, _ = STEP(ts, batch)
        ts, metrics = STEP(ts, batch)
        return ts, metrics | {"first": batch["image"][0, 0]}

    ts, history = RUN(twice, start(), DATA, steps=8, batch_size=SIZE)
    fitted, shown = fnn.train.fit(twice, start(), DATA, epochs=2, batch_size=SIZE, progress=False)
    np.testing.assert_array_equal(history["train"]["first"], shown["train"]["first"])
    assert int(ts.step) == int(fitted.step) == 16


@pytest.mark.parametrize("first", [4, 6])
def test_a_run_that_is_resumed_is_the_whole_run_bitwise(first):
    whole, history = RUN(STEP, start(), DATA, steps=11, batch_size=SIZE)
    half, before = RUN(STEP, start(), DATA, steps=first, batch_size=SIZE)
    both, after = RUN(STEP, half, DATA, steps=11 - first, batch_size=SIZE)
    assert_same_bits(both, whole)
    losses = np.concatenate([before["train"]["loss"], after["train"]["loss"]])
    np.testing.assert_array_equal(losses, history["train"]["loss"])


@pytest.mark.parametrize("every", [1, 3, 20])
def test_checkpoints_change_no_bit(every):
    fn = jax.jit(
        lambda ts: fnn.train.run(STEP, ts, DATA, steps=11, batch_size=SIZE, checkpoint_every=every)
    )
    ts, history = fn(start())
    wanted, losses = by_hand(11)
    assert_same_bits(ts, wanted)
    np.testing.assert_array_equal(history["train"]["loss"], losses)


@pytest.mark.parametrize("every", [2, 4, 7])
def test_evaluation_sees_the_state_of_its_step(every):
    def weight(ts):
        return {"first": ts.params["dense1"]["kernel"][0, 0], "step": ts.step}

    ts, history = jax.jit(
        lambda ts: fnn.train.run(
            STEP, ts, DATA, steps=9, batch_size=SIZE, evaluate_every=every, evaluate=weight
        )
    )(start())
    assert int(ts.step) == 9 and history["train"]["loss"].shape == (9,)
    np.testing.assert_array_equal(history["eval"]["step"], np.arange(every, 10, every))
    for step, first in zip(history["eval"]["step"], history["eval"]["first"], strict=True):
        wanted, _ = by_hand(int(step))
        np.testing.assert_array_equal(first, wanted.params["dense1"]["kernel"][0, 0])


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_every_generator_draws_the_batches_of_fit(impl):
    """Under vmap those of XLA draw other numbers than alone."""
    start = fnn.train.init(NET, TX, jax.random.key(0, impl=impl), (1, 4))
    options = dict(epochs=3, batch_size=SIZE, progress=False)
    losses = fnn.train.fit(STEP, start, DATA, **options)[1]["train"]["loss"]
    every = dict(steps=12, batch_size=SIZE, checkpoint_every=10)
    ours = jax.jit(lambda ts: fnn.train.run(STEP, ts, DATA, **every)[1])(start)
    np.testing.assert_array_equal(ours["train"]["loss"], losses)


def test_what_a_layer_draws_depends_on_its_name_alone_under_every_generator():
    key, kernels = jax.random.key(0, impl="rbg"), []
    for parts in (
        {"b": fnn.repeat(fnn.dense(2), 3)},
        {"a": fnn.dense(2), "b": fnn.repeat(fnn.dense(2), 5)},
    ):
        kernels.append(fnn.serial(**parts).init(key, (1, 2))[0]["b"]["kernel"][:3])
    np.testing.assert_array_equal(*kernels)


def test_runs_need_no_compiler_for_less_than_an_epoch():
    with jax.disable_jit():
        for steps in (0, 1):
            _, history = fnn.train.run(STEP, start(), DATA, steps=steps, batch_size=SIZE)
            assert history["train"]["loss"].shape == (steps,)


def test_lanes_of_vmap_are_single_runs():
    keys = jax.random.split(jax.random.key(3), 3)

    def run(key):
        ts = fnn.train.init(NET, TX, key, (1, 4))
        return fnn.train.run(STEP, ts, DATA, steps=9, batch_size=SIZE)[1]["train"]["loss"]

    lanes = jax.jit(jax.vmap(run))(keys)
    for key, lane in zip(keys, lanes, strict=True):
        np.testing.assert_allclose(lane, jax.jit(run)(key), rtol=1e-5)


@pytest.mark.full
def test_the_derivative_through_a_run_is_the_difference():
    with jax.enable_x64(True):
        data = {"image": DATA["image"].astype(np.float64), "label": DATA["label"]}
        net = fnn.serial(fnn.dense(8), jnp.tanh, fnn.dense(3))
        loss = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy)
        params, _ = net.init(jax.random.key(0), data["image"][:1])

        def last(rate):
            tx = fnn.optim.adam(rate)
            step = fnn.train.step(loss, tx)
            ts = fnn.train.TrainState(
                jnp.zeros((), jnp.int32), params, {}, tx.init(params), jax.random.key(1)
            )
            _, history = fnn.train.run(step, ts, data, steps=10, batch_size=SIZE)
            return history["train"]["loss"][-1]

        last = jax.jit(last)
        slope, h = jax.grad(last)(0.01), 1e-6
        numeric = (last(0.01 + h) - last(0.01 - h)) / (2 * h)
        np.testing.assert_allclose(slope, numeric, rtol=1e-5)
        np.testing.assert_allclose(jax.jvp(last, (0.01,), (1.0,))[1], numeric, rtol=1e-5)


def test_no_steps_change_nothing():
    ts, history = RUN(STEP, start(), DATA, steps=0, batch_size=SIZE)
    assert_same_bits(ts, start())
    assert history["train"]["loss"].shape == (0,)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"steps": -1}, errors.OptionError, "steps"),
        ({"batch_size": 0}, errors.OptionError, "batch_size"),
        ({"batch_size": 24}, errors.OptionError, "23 examples"),
        ({"evaluate_every": 2}, errors.OptionError, "together"),
        ({"data": {"x": np.ones(3), "y": np.ones(4)}}, errors.ShapeError, "leading axis"),
        ({"data": {}}, errors.ShapeError, "leading axis"),
        ({"data": np.float32(1)}, errors.ShapeError, "leading axis"),
        ({"train_state": {}}, errors.InputError, "TrainState"),
    ],
)
def test_wrong_inputs_are_refused(options, kind, text):
    given = {"train_state": start(), "data": DATA, "steps": 3, "batch_size": SIZE} | options
    with pytest.raises(kind, match=text) as raised:
        fnn.train.run(STEP, **given)
    assert raised.value.layer == "run"
