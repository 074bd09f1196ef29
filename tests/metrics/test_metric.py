"""Sums that lose nothing, masks of rows, means of functions, and metrics in training."""

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.metrics as sklearn

import fnn
from fnn import errors, metrics
from tests.losses import oracles_batch
from tests.metrics.support import assert_close, assert_teaches, at_once
from tests.support import asarray, outcome


def test_a_million_updates_round_no_worse_than_one():
    """A float32 sum of a million times 0.1 is off by a percent; this one by its last digit."""
    metric = metrics.mean(lambda outputs, labels: outputs)

    @jax.jit
    def run(x):
        def body(accumulator, _):
            return metric.update(accumulator, x, x), None

        return metric.compute(jax.lax.scan(body, metric.init(), None, length=10**6)[0])

    np.testing.assert_allclose(run(jnp.float32([0.1])), np.float32(0.1), rtol=1.2e-7)


def test_small_addends_are_not_lost_beside_large_ones():
    """1 + 4000 times 2**-26, which one by one a float32 sum of 1 would not notice; and exactly."""
    metric = metrics.mean(lambda outputs, labels: outputs)
    update = jax.jit(metric.update)
    accumulator = metric.init()
    for x in [1.0] + [2.0**-26] * 4000 + [-1.0]:
        accumulator = update(accumulator, jnp.float32([x]), jnp.zeros(1))
    high, low = map(np.float64, accumulator["total"])
    assert high + low == 4000 * 2.0**-26


def test_infinite_values_stay_infinite():
    metric = metrics.mean(lambda outputs, labels: outputs)
    for values, want in (
        ([1, np.inf, 2], np.inf), ([-np.inf, 1, 1], -np.inf), ([np.inf, 1, -np.inf], np.nan),
        ([1, np.nan, 2], np.nan),
    ):  # fmt: skip
        accumulator = metric.init()
        for x in values:
            accumulator = metric.update(accumulator, jnp.float32([x]), jnp.zeros(1))
        np.testing.assert_equal(np.asarray(metric.compute(accumulator)), np.float32(want))


def test_counts_beyond_32_bits():
    """100 batches of 3 * 2**25 pixels; and 8 such accumulators, added."""
    from fnn.metrics.metric import add, no_sum, total

    def body(counts, n):
        return add(counts, n), None

    start = no_sum()
    counts, _ = jax.lax.scan(body, start, jnp.full(100, 3 * 2**25 + 1, jnp.int32))
    want = 100 * (3 * 2**25 + 1)
    high, low = map(float, counts)
    assert high + low == want > 2**33
    eight = jax.tree.map(lambda a: 8 * a, counts)
    np.testing.assert_allclose(total(eight), 8.0 * want, rtol=1e-7)
    high, low = map(float, add(eight, jnp.int32(7)))
    assert high + low == 8 * want + 7
    high, low = map(float, add(start, jnp.int32(2**31 - 1)))  # in one batch
    assert high + low == 2**31 - 1


def test_a_mask_of_the_first_axes():
    """[B] and [B, T] masks of [B, T] tokens; () masks the one example there is."""
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    labels = asarray([[0, 1, 2], [3, 4, 0]])
    loss = oracles_batch.softmax_cross_entropy(np.float64(logits), np.asarray(labels))
    rows, tokens = asarray([True, False]), asarray([[1, 1, 0], [0, 0, 1]], bool)
    perplexity = metrics.perplexity()
    assert_close(at_once(perplexity, logits, labels, rows), np.exp(loss[0].mean()), rtol=1e-5)
    want = np.exp(loss[np.asarray(tokens)].mean())
    assert_close(at_once(perplexity, logits, labels, tokens), want, rtol=1e-5)
    assert_close(
        at_once(perplexity, logits, labels, jnp.array(True)), np.exp(loss.mean()), rtol=1e-5
    )
    assert np.isnan(at_once(perplexity, logits, labels, jnp.array(False)))


def test_means_of_trees_bools_and_integers_and_their_gradient():
    hit = metrics.mean(lambda outputs, labels: outputs["a"] > labels)
    assert hit.value({"a": jnp.arange(4.0)}, jnp.ones(4)) == 0.5
    far = metrics.mean(lambda outputs, labels: jnp.abs(outputs - labels))
    assert far.value(asarray([1, 2]), asarray([2, 4])) == 1.5
    square = metrics.mean_squared_error()
    x, y = jnp.float32([1, 2, 5]), jnp.float32([0, 0, 1])
    np.testing.assert_allclose(jax.grad(square.value)(x, y), 2 * (x - y) / 3, rtol=1e-6)
    np.testing.assert_allclose(
        jax.jvp(lambda x: square.value(x, y), (x,), (x,))[1], 50 / 3, rtol=1e-6
    )


def test_wrong_functions_and_their_values():
    for bad in (None, 3, "accuracy", metrics.accuracy, metrics.accuracy(), jnp.ones(2)):
        assert_teaches(outcome(metrics.mean, bad), "mean", errors.OptionError)
    x = jnp.ones(3)
    for wrong, kind in (
        (None, errors.InputError), (1.5, errors.InputError), ([x, x], errors.InputError),
        (x.astype(jnp.complex64), errors.DtypeError),
    ):  # fmt: skip

        def error_rate(outputs, labels, wrong=wrong):
            return wrong

        error = outcome(metrics.mean(error_rate).value, x, x)
        assert_teaches(error, "mean(error_rate)", kind)
    error = outcome(metrics.mean(lambda x, y: x.mean()).value, x, x, x > 0)
    assert_teaches(error, "mean(<lambda>)", errors.ShapeError)
    assert_teaches(outcome(metrics.roc_auc, 17), "roc_auc", errors.OptionError)


def test_the_step_and_the_evaluator_take_metrics_and_functions():
    """The mean of batches' F1 is not that of all 10 examples, the accumulated one is."""
    rng = np.random.default_rng(0)
    net, tx = fnn.dense(3), fnn.optim.sgd(0.0)
    data = {
        "image": rng.normal(size=(10, 5)).astype("float32"),
        "label": rng.integers(0, 3, 10).astype("int32"),
    }
    measures = {
        "f1": metrics.f1(3),
        "cells": metrics.confusion_matrix(3),
        "loss_": fnn.losses.softmax_cross_entropy,
        "accuracy": metrics.accuracy(),
    }
    ts = fnn.train.init(net, tx, jax.random.key(0), (1, 5))
    logits = np.float64(net(ts.params, data["image"]))
    guess, labels = logits.argmax(-1), data["label"]
    want = {
        "f1": sklearn.f1_score(labels, guess, average="macro"),
        "cells": sklearn.confusion_matrix(labels, guess, labels=range(3)),
        "loss_": np.mean(oracles_batch.softmax_cross_entropy(logits, labels)),
        "accuracy": np.mean(guess == labels),
    }
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy, measures), tx)
    _, stepped = step(ts, data)  # all 10
    assert list(stepped) and set(stepped) == {"loss", *want}
    for name, expected in want.items():
        assert_close(stepped[name], expected, 1e-5, name)
    for batch_size in (4, 64):
        evaluate = fnn.train.evaluator(net, data, measures, batch_size=batch_size)
        measured = evaluate(ts)
        assert list(measured) == list(want)
        for name, expected in want.items():
            assert_close(measured[name], expected, 1e-5, name)
    _, history = fnn.train.fit(
        step, ts, data, epochs=2, batch_size=10, progress=False, evaluate=evaluate
    )
    for part in ("train", "eval"):
        assert history[part]["cells"].shape == (2, 3, 3)


def test_a_metric_of_the_step_need_not_be_differentiable():
    def sorted_on_the_host(outputs, labels):
        like = jax.ShapeDtypeStruct(labels.shape, jnp.float32)
        return jax.pure_callback(lambda x: np.float32(x[:, 0]), like, outputs)

    net = fnn.dense(2)
    loss = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy, {"host": sorted_on_the_host})
    tx = fnn.optim.sgd(0.1)
    ts = fnn.train.init(net, tx, jax.random.key(0), (1, 3))
    batch = {"image": jnp.ones((2, 3)), "label": asarray([0, 1])}
    _, measured = fnn.train.step(loss, tx)(ts, batch)
    assert_close(measured["host"], net(ts.params, batch["image"])[:, 0].mean())


def test_uncalled_builders_and_other_things_are_refused():
    net = fnn.dense(2)
    data = {"image": np.ones((2, 3), "float32"), "label": np.array([0, 1])}
    for bad in (metrics.accuracy, metrics.mean, 3, None, "accuracy"):
        for make in (
            lambda m: fnn.train.supervised(net, fnn.losses.softmax_cross_entropy, m),
            lambda m: fnn.train.evaluator(net, data, m),
        ):
            error = outcome(make, {"hit": bad})
            assert isinstance(error, errors.OptionError)
            assert "metric hit" in str(error) and "accuracy()" in error.mend
    assert "accuracy, which builds" in str(
        outcome(fnn.train.evaluator, net, data, {"hit": metrics.accuracy})
    )
    assert isinstance(
        outcome(fnn.train.evaluator, net, data, [metrics.accuracy()]), errors.InputError
    )
