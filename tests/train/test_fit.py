"""The host loop: its batches, its history, its evaluation and its progress bar."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors, train
from tests.train.support import assert_same_bits, conv_net, data, dense_net, looped, setup


def fit(ts, step, epochs, **options):
    return train.fit(step, ts, data(), epochs=epochs, batch_size=5, progress=False, **options)


def test_fit_is_the_loop_over_batches():
    ts, step = setup()
    fitted, history = fit(ts, step, 2)
    ts, losses = looped(step, ts, data(), 5, 8)
    assert_same_bits(fitted, ts)
    assert history["train"]["loss"].tolist() == losses.tolist()
    assert len(losses) == 8 and history["eval"] == {}


def test_one_and_one_epochs_are_two_bitwise():
    ts, step = setup(conv_net(), shape=(4, 4, 1))
    images = data((4, 4, 1))
    options = {"batch_size": 5, "progress": False}
    both, history = train.fit(step, ts, images, epochs=2, **options)
    half, first = train.fit(step, ts, images, epochs=1, **options)
    again, second = train.fit(step, half, images, epochs=1, **options)
    assert_same_bits(again, both)
    assert [*first["train"]["loss"], *second["train"]["loss"]] == [*history["train"]["loss"]]


def test_resuming_in_the_middle_of_an_epoch():
    ts, step = setup()
    both, _ = fit(ts, step, 2)
    early, _ = looped(step, ts, data(), 5, 3)
    late, _ = fit(early, step, 1)  # one epoch's worth: the last of epoch 0, three of epoch 1
    assert int(late.step) == 7
    assert_same_bits(looped(step, late, data(), 5, 1)[0], both)


def test_batches_from_a_function_of_the_epoch():
    ts, step = setup()
    epochs = []

    def batches(epoch):
        epochs.append(epoch)
        yield from [data()] * 3

    after, history = train.fit(step, ts, batches, epochs=2, progress=False)
    assert epochs == [0, 1] and after.step == 6 and history["train"]["accuracy"].shape == (6,)
    once = iter([data()])
    with pytest.raises(errors.InputError, match="none in epoch 1"):
        train.fit(step, ts, lambda epoch: once, epochs=2, progress=False)


def test_stacked_training_states_are_refused():
    ts, step = setup()
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), ts)
    with pytest.raises(errors.InputError, match="one training state.*function of the epoch"):
        fit(stacked, jax.vmap(step, (0, None)), 1)


def test_fits_errors():
    ts, step = setup()
    with pytest.raises(errors.OptionError, match="batch_size"):
        train.fit(step, ts, data(), epochs=1)
    with pytest.raises(errors.OptionError, match="at most the 24 examples"):
        train.fit(step, ts, data(), epochs=1, batch_size=25)
    with pytest.raises(errors.InputError, match="function of the epoch"):
        train.fit(step, ts, iter([data()]), epochs=1)
    with pytest.raises(errors.OptionError, match="epochs"):
        train.fit(step, ts, data(), epochs=-1, batch_size=5)
    assert_same_bits(fit(ts, step, 0)[0], ts)


def test_evaluation_counts_every_example_once():
    net = dense_net()
    ts, step = setup(net)
    metrics = {"accuracy": fnn.metrics.accuracy(), "loss": fnn.losses.softmax_cross_entropy}
    images, labels = data()["image"], data()["label"]
    logits = np.asarray(net(ts.params, images), np.float64)
    right = np.mean(logits.argmax(-1) == labels)
    shifted = logits - logits.max(-1, keepdims=True)
    loss = np.mean(np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(24), labels])
    for batch_size in (1, 7, 24, 100):
        measured = train.evaluator(net, data(), metrics, batch_size=batch_size)(ts)
        np.testing.assert_allclose(measured["accuracy"], right, rtol=1e-6)
        np.testing.assert_allclose(measured["loss"], loss, rtol=1e-5)
    _, history = fit(ts, step, 3, evaluate=train.evaluator(net, data(), metrics))
    assert history["eval"]["accuracy"].shape == (3,)
    column = {"hit": lambda o, labels: (o.argmax(-1) == labels)[:, None]}
    measured = train.evaluator(net, data(), column, batch_size=7)(ts)
    np.testing.assert_allclose(measured["hit"], right, rtol=1e-6)
    with pytest.raises(errors.ShapeError, match="or of its first axes"):
        train.evaluator(net, data(), {"hit": lambda o, y: (o.argmax(-1) == y).mean()})(ts)
    with pytest.raises(errors.InputError, match="no examples"):
        train.evaluator(net, data(n=0), metrics)(ts)


def test_the_progress_bar(capsys):
    ts, step = setup()
    train.fit(step, ts, data(), epochs=1, batch_size=5)
    assert "4/4" in capsys.readouterr().err


def test_a_missing_tqdm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    ts, step = setup()
    with pytest.raises(ImportError, match=r"pip install 'fnn\[progress\]'"):
        train.fit(step, ts, data(), epochs=1, batch_size=5)


def test_a_legacy_key_trains_the_same():
    net, tx = dense_net(), fnn.optim.adam(1e-2)
    _, step = setup(net, tx)
    one, two = (
        fit(train.init(net, tx, key, (1, 4)), step, 1)[0]
        for key in (jax.random.key(3), jax.random.PRNGKey(3))
    )
    assert_same_bits(one, two)
