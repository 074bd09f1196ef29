"""Metrics of an ensemble: of its prediction, and of each of its members."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import ensembles, errors

NET = fnn.serial(fnn.dense(8), jnp.tanh, fnn.dense(3))
X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
DATA = {"image": X, "label": np.arange(40, dtype=np.int32) % 3}
XENT = fnn.losses.softmax_cross_entropy


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_an_ensemble_is_evaluated_as_one_network():
    several = fnn.ensemble(NET, 3)
    ts = fnn.train.init(several, fnn.optim.sgd(0.1), jax.random.key(0), (1, 4))
    accuracy = fnn.metrics.accuracy()
    metrics = {
        "mean": fnn.metrics.after(ensembles.mean_logits, accuracy),
        "loss": fnn.metrics.after(ensembles.mean_logits, XENT),
        "each": fnn.metrics.each(accuracy, 3),
        "losses": fnn.metrics.each(XENT, 3),
    }
    measured = fnn.train.evaluator(several, DATA, metrics, batch_size=7)(ts)
    p = softmax(np.asarray(several(ts.params, X), np.float64))
    right = p.argmax(-1) == DATA["label"]
    picked = p[:, np.arange(40), DATA["label"]]
    np.testing.assert_allclose(measured["each"], right.mean(1), rtol=1e-6)
    np.testing.assert_allclose(measured["losses"], -np.log(picked).mean(1), rtol=1e-5)
    np.testing.assert_allclose(measured["loss"], -np.log(picked.mean(0)).mean(), rtol=1e-5)
    hits = (p.mean(0).argmax(-1) == DATA["label"]).mean()
    np.testing.assert_allclose(measured["mean"], hits, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: fnn.metrics.after(3, XENT), errors.OptionError, "a function"),
        (lambda: fnn.metrics.after(jnp.tanh, fnn.metrics.accuracy), errors.OptionError, "call"),
        (
            lambda: fnn.metrics.each(XENT, 3).value(jnp.ones((2, 1, 3)), jnp.zeros(1, int)),
            errors.ShapeError,
            "3 members",
        ),
    ],
)
def test_wrong_inputs_are_refused(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
