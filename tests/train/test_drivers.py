"""However `fit` makes its steps, they are the same ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.train.support import assert_same_bits, looped

N, SIZE, TOTAL = 23, 4, 5  # five batches an epoch, three examples left out
DATA = {
    "image": np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32),
    "label": np.arange(N, dtype=np.int32) % 3,
}
TX = fnn.optim.adam(1e-2)


def step_of(net):
    return fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), TX)


DENSE = fnn.serial(fnn.dense(8), jnp.tanh, fnn.dropout(0.2), fnn.dense(3))
IMAGES = fnn.serial(lambda x: x.reshape(-1, 3, 2, 1), fnn.conv(4, (2, 2)), jax.nn.relu)
CONV = fnn.serial(IMAGES, fnn.flatten(3), fnn.dense(3))
STEPS = {"dense": (DENSE, step_of(DENSE)), "conv": (CONV, step_of(CONV))}


def start(net=DENSE):
    return fnn.train.init(net, TX, jax.random.key(0), DATA["image"][:1])


def fit(ts, step=STEPS["dense"][1], data=DATA, epochs=2, **options):
    options = {"batch_size": SIZE, "progress": False} | options
    return fnn.train.fit(step, ts, data, epochs=epochs, **options)


def by_hand(step, ts, steps):
    ts, losses = looped(step, ts, DATA, SIZE, steps)
    return ts.params, losses


@pytest.mark.parametrize(("driver", "chunk"), [("scan", 1), ("chunk", 2), ("chunk", 7)])
def test_a_dense_network_learns_the_same_bits(driver, chunk):
    for begun in (0, 3):  # in the middle of an epoch too
        ts = start()._replace(step=jnp.int32(begun))
        after, history = fit(ts, driver=driver, chunk=chunk)
        params, losses = by_hand(STEPS["dense"][1], ts, 2 * TOTAL)
        assert_same_bits(after.params, params)
        assert_same_bits(history["train"]["loss"], losses)
        assert history["driver"] == driver and int(after.step) == begun + 2 * TOTAL


@pytest.mark.parametrize("driver", ["scan", "chunk"])
def test_a_convolution_learns_the_same_within_rounding(driver):
    net, step = STEPS["conv"]
    after, history = fit(start(net), step, driver=driver, chunk=3)
    params, losses = by_hand(step, start(net), 2 * TOTAL)
    np.testing.assert_allclose(history["train"]["loss"], losses, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.params, params)


@pytest.mark.parametrize("driver", ["loop", "scan", "chunk"])
def test_each_driver_repeats_itself_and_goes_on(driver):
    net, step = STEPS["conv"]
    options = {"driver": driver, "chunk": 2}
    whole, _ = fit(start(net), step, **options)
    assert_same_bits(fit(start(net), step, **options)[0].params, whole.params)
    half, _ = fit(start(net), step, epochs=1, **options)
    assert_same_bits(fit(half, step, epochs=1, **options)[0].params, whole.params)


def test_auto_is_the_driver_that_it_names():
    net, step = STEPS["conv"]
    after, history = fit(start(net), step, driver="auto", chunk=2)
    pinned, again = fit(start(net), step, driver=history["driver"], chunk=2)
    assert history["driver"] in ("scan", "chunk", "loop")
    assert_same_bits(after.params, pinned.params)
    assert_same_bits(history["train"], again["train"])


@pytest.mark.parametrize(
    ("alone", "together", "patience", "taken"),
    [(1.0, 2.0, 9.0, "loop"), (2.0, 1.0, 9.0, "scan"), (2.0, 1.0, 0.1, "chunk")],
)
def test_auto_takes_the_faster(monkeypatch, alone, together, patience, taken):
    """By the times that it measures, which replace a clock here."""

    def seconds(calls_of, ts, count):
        return alone if count > 1 else together

    monkeypatch.setattr("fnn.train.drivers._seconds", seconds)
    monkeypatch.setattr("fnn.train.drivers.PATIENCE", patience)
    assert fit(start(), driver="auto", chunk=4)[1]["driver"] == taken


@pytest.mark.parametrize("driver", ["auto", "scan", "chunk", "loop"])
def test_a_step_may_donate_its_state(driver):
    step = jax.jit(STEPS["dense"][1], donate_argnums=0)
    after, _ = fit(start(), step, driver=driver, chunk=2)
    assert_same_bits(after.params, fit(start())[0].params)


def test_a_function_of_the_epoch_is_looped_over():
    history = fit(start(), data=lambda epoch: [DATA], batch_size=None, driver="auto")[1]
    assert history["driver"] == "loop" and history["train"]["loss"].shape == (2,)


@pytest.mark.parametrize(
    ("driver", "steps"),
    [("loop", range(1, 11)), ("chunk", [2, 4, 5, 7, 9, 10]), ("scan", [5, 10])],
)
def test_a_callback_sees_every_call(driver, steps):
    seen, rows = [], []

    def callback(event):
        if not event.ended:
            rows.extend(event.rows(seen[-1][0] if seen else 0))
            seen.append((event.step, int(event.train_state.step), event.metrics["train/loss"]))

    _, history = fit(start(), driver=driver, chunk=2, callbacks=[callback])
    assert [step for step, _, _ in seen] == [step for _, step, _ in seen] == list(steps)
    losses = history["train"]["loss"]
    assert [float(loss) for _, _, loss in seen] == [losses[step - 1] for step in steps]
    assert [row.step for row in rows] == list(range(1, 11))
    assert [row.epoch for row in rows] == [0] * 5 + [1] * 5
    assert [row.metrics["train/loss"] for row in rows] == list(losses)


@pytest.mark.parametrize("driver", ["chunk", "scan"])
def test_calls_end_where_a_callback_asks(driver):
    steps = []

    def callback(event):
        steps.append(event.step)

    callback.every = 3
    counted = lambda ts: {"step": ts.step}  # noqa: E731
    options = {"driver": driver, "callbacks": [callback], "evaluate": counted}
    _, history = fit(start(), evaluate_every=4, **options)
    assert steps == [3, 4, 6, 8, 9, 10, 10]  # evaluations too, and the end
    assert history["eval_step"].tolist() == history["eval"]["step"].tolist() == [4, 8]
    np.testing.assert_allclose(
        history["train"]["loss"], fit(start())[1]["train"]["loss"], rtol=1e-6
    )


def test_a_callback_ends_the_run():
    early = lambda event: event.train_state.step >= 7  # noqa: E731
    after, history = fit(start(), driver="chunk", chunk=2, callbacks=[early])
    params, losses = by_hand(STEPS["dense"][1], start(), 7)
    assert_same_bits(after.params, params)
    assert_same_bits(history["train"]["loss"], losses)
    assert history["ended"] == "a callback"


@pytest.mark.parametrize("driver", ["loop", "chunk", "scan"])
def test_metrics_may_be_trees(driver):
    def step(ts, batch):
        ts, metrics = STEPS["dense"][1](ts, batch)
        return ts, {"of": {"both": metrics["loss"], "twice": 2 * metrics["loss"]}}

    evaluate = lambda ts: {"at": {"step": ts.step}}  # noqa: E731
    _, history = fit(start(), step, driver=driver, chunk=2, evaluate=evaluate)
    of = history["train"]["of"]
    np.testing.assert_array_equal(of["twice"], 2 * of["both"])
    assert of["both"].shape == (10,)
    np.testing.assert_array_equal(history["eval"]["at"]["step"], [5, 10])


def test_a_step_need_not_hash():
    class Step(dict):
        def __call__(self, ts, batch):
            return STEPS["dense"][1](ts, batch)

    after, _ = fit(start(), Step(), driver="scan")
    assert_same_bits(after.params, fit(start(), driver="scan")[0].params)


def test_the_bar_counts_steps(capsys):
    fit(start(), driver="chunk", chunk=2, progress=True)
    assert "10/10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"driver": "fast"}, errors.OptionError, "auto, scan, chunk, loop"),
        ({"chunk": 0}, errors.OptionError, "chunk"),
        ({"driver": "scan", "data": lambda epoch: []}, errors.OptionError, "function of the epoch"),
        ({"driver": "chunk", "data": iter([DATA])}, errors.InputError, "an iterator"),
        ({"driver": "scan", "batch_size": None}, errors.OptionError, "batch_size"),
        ({"callbacks": [3]}, errors.OptionError, "callback"),
        ({"callbacks": print}, errors.OptionError, "a list"),
    ],
)
def test_wrong_options_are_refused(options, kind, text):
    with pytest.raises(kind, match=text):
        fit(start(), **options)
