"""Early stopping, limits, signals and NaN, as `fit` calls them; donation."""

import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import checkpoint, errors, train
from tests.train.support import assert_same_bits, data, looped, setup


def fit(*callbacks, epochs=4, **options):
    ts, step = setup()
    options = {"batch_size": 5, "progress": False} | options
    return train.fit(step, ts, data(), epochs=epochs, callbacks=callbacks, **options)


def values_in_turn(*values):
    """An evaluation that gives these, one after another."""
    values = iter(values)
    return lambda train_state: {"loss": next(values)}


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "mode", "least", "evaluations", "best"),
    [
        ([3.0, 2.0, 2.5, 2.2, 1.0], "min", 0.0, 4, 2),
        ([3.0, NAN, NAN, 1.0], "min", 0.0, 3, 1),
        ([NAN, 3.0, 4.0, 4.0], "min", 0.0, 4, 2),
        ([1.0, 2.0, 2.0, 2.0], "max", 0.0, 4, 2),
        ([3.0, 2.95, 2.9, 1.0], "min", 0.5, 3, 1),
        ([5.0, 4.0, 3.0, 2.0], "min", 0.0, 4, 4),  # never stops
    ],
)
def test_patience_by_hand(values, mode, least, evaluations, best):
    """It ends after two evaluations without improvement, with the params of the best."""
    early = train.patience("eval/loss", 2, mode=mode, least=least)
    ts, history = fit(early, evaluate=values_in_turn(*values))
    assert len(history["eval"]["loss"]) == evaluations
    (start, step), steps = setup(), 4 * best
    assert_same_bits(ts.params, looped(step, start, data(), 5, steps)[0].params)
    ended = history["ended"]
    assert ended.startswith("eval/loss has not improved") if best < 4 else ended == "4 epochs"


def test_patience_names_a_missing_metric():
    with pytest.raises(errors.OptionError, match="among eval/loss"):
        fit(train.patience("eval/accuracy", 2), evaluate=values_in_turn(1.0))


def test_the_time_limit_and_the_signal_interrupt_and_clean_up(tmp_path):
    assert fit(train.time_limit(0.0))[1]["ended"] == "the time limit of 0 s"
    before = signal.getsignal(signal.SIGTERM)

    def kill(event):
        if event.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    keeper = checkpoint.Keeper(tmp_path)
    ts, history = fit(train.stop_on_signal(), kill, keeper)
    assert history["ended"] == "SIGTERM" and 6 <= len(history["train"]["loss"]) <= 7
    assert keeper.latest() == len(history["train"]["loss"])
    assert signal.getsignal(signal.SIGTERM) == before
    after, history = fit(keeper, resume=keeper)
    assert_same_bits(after, fit()[0])
    assert len(history["train"]["loss"]) == 16


def test_nan_is_traced_to_its_batch(tmp_path):
    """The batch of the first bad step, and the state before it, are saved and reported."""
    ts, good = setup()
    images = data()
    bad = {"image": images["image"].copy(), "label": images["label"]}
    bad["image"][7] = np.nan

    def report(before, batch):
        return f"step {int(before.step)} with {np.isnan(batch['image']).any(1).sum()} bad rows"

    stop = train.stop_on_nan(every=3, directory=tmp_path, report=report)
    options = {"epochs": 2, "batch_size": 5, "progress": False}
    _, history = train.fit(good, ts, bad, callbacks=[stop], **options)
    losses = looped(good, ts, bad, 5, 8)[1]
    first = int(np.flatnonzero(~np.isfinite(losses))[0]) + 1
    assert history["ended"].startswith(f"step {first} has train/loss nan")
    assert history["ended"].endswith(f"step {first - 1} with 1 bad rows")
    saved = checkpoint.restore(tmp_path / f"nan-step-{first}")
    assert np.isnan(saved["batch"]["image"]).any()
    before = looped(good, ts, bad, 5, first - 1)[0]
    assert_same_bits(saved["train_state"]["params"], jax.device_get(before.params))


def test_the_table_prints_evaluations(capsys):
    fit(train.table(), evaluate=values_in_turn(0.5, 0.25), epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "eval/loss 0.25" in lines[1] and "2 epochs" in lines[2]


# --- donation


def test_donating_steps_are_the_steps_and_use_up_their_state():
    ts, step = setup()
    net, tx = fnn.dense(3), fnn.optim.adam(1e-2)
    loss = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy)
    plain, donating = train.step(loss, tx), train.step(loss, tx, donate=True)
    ts = train.init(net, tx, jax.random.key(0), (1, 4))
    batch = jax.tree.map(lambda a: a[:5], data())
    kept = jax.tree.map(jnp.copy, ts)
    after, _ = donating(ts, batch)
    assert_same_bits(after, plain(kept, batch)[0])
    assert ts.params["kernel"].is_deleted() and not ts.key.is_deleted()
    assert not kept.params["kernel"].is_deleted()
    with pytest.raises(errors.InputError, match="donate=True has used up.*jnp.copy"):
        donating(ts, batch)
    with pytest.raises(errors.InputError, match="used up"):
        plain(ts, batch)


@pytest.mark.parametrize("driver", ["loop", "chunk", "scan", "auto"])
def test_fit_owns_its_state_and_leaves_yours(driver):
    ts, step = setup()
    before = jax.tree.map(np.array, ts._replace(key=None))
    states = []
    options = {"batch_size": 5, "driver": driver, "progress": False}
    train.fit(step, ts, data(), epochs=2, callbacks=[lambda e: states.append(e)], **options)
    assert_same_bits(jax.tree.map(np.array, ts._replace(key=None)), before)
    assert states[0].train_state.params["dense1"]["kernel"].is_deleted()


def test_an_error_is_told_to_callbacks_and_raised():
    seen = []

    def fails(event):
        seen.append((event.step, event.ended, len(event.rows(0))))
        if event.step == 3 and not event.ended:
            raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        fit(fails)
    assert seen[-1] == (3, "RuntimeError: a fault", 3)


def test_rows_between_steps():
    seen = []
    fit(lambda event: seen.append([row.step for row in event.rows(1, 3)]), driver="chunk", chunk=3)
    assert seen[0] == [2, 3] and seen[-1] == [2, 3]


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_raises_leaves_the_signal_as_it_was(raised):
    before = signal.getsignal(signal.SIGTERM)

    def callback(event):
        assert signal.getsignal(signal.SIGTERM) != before
        raise raised("it")

    with pytest.raises(raised, match="it"):
        fit(train.stop_on_signal(), callback)
    assert signal.getsignal(signal.SIGTERM) == before


def test_nan_in_a_step_of_several_is_told_but_not_traced(tmp_path):
    """Its number does not say where it was taken."""
    net = fnn.serial(fnn.gru(2, stateful=True), fnn.dense(1))
    step = train.step(train.supervised(net, fnn.losses.squared_error), fnn.optim.sgd(0.1))
    ts = train.init(net, fnn.optim.sgd(0.1), jax.random.key(0), (2, 5, 3))

    def batches(_):
        return [(np.full((2, 10, 3), x, np.float32), np.ones((2, 10, 1))) for x in (1, np.nan, 1)]

    _, history = train.fit(
        train.tbptt(step, 5), ts, batches, epochs=1, progress=False,
        callbacks=[train.stop_on_nan(every=1, directory=tmp_path)],
    )  # fmt: skip
    assert "step 2 has" in history["ended"] and "not taken again" in history["ended"]
    assert history["train"]["loss"].shape == (2, 2) and list(tmp_path.iterdir()) == []


def test_a_wrapped_step_is_called_itself():
    """Though functools.wraps gives it the attributes of the step inside."""
    ts, step = setup()
    called = []

    @functools.wraps(step)
    def wrapped(train_state, batch):
        called.append(None)
        return step(train_state, batch)

    after, _ = train.fit(wrapped, ts, data(), epochs=1, batch_size=5, progress=False)
    assert len(called) == 4
    assert_same_bits(after, fit(epochs=1)[0])
