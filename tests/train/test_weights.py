"""Masks, weights, lengths and class weights: parts of a batch give what the whole batch gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sklearn

import fnn
from fnn import errors, losses, metrics
from fnn.optim import accumulate, sam
from tests.losses import oracles_batch
from tests.support import asarray

B, T, C = 12, 5, 3


XENT = losses.softmax_cross_entropy


MEASURES = {
    "accuracy": metrics.accuracy(),
    "f1": metrics.f1(C),
    "perplexity": metrics.perplexity(),
    "xent": XENT,
}


def sequences(seed=0):
    """[B, T] labels, -1 where there is none; NaN where no one is to look."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, T + 1, B).astype("int32")
    lengths[:3] = 0  # with k = 4 the first part has nothing
    mask = np.arange(T) < lengths[:, None]
    labels = np.where(mask, rng.integers(0, C, (B, T)), -1).astype("int32")
    weights = rng.choice([0.0, 0.5, 3.0], (B, T)).astype("float32")
    return {
        "image": rng.normal(size=(B, T, 4)).astype("float32"), "label": labels, "mask": mask,
        "lengths": lengths, "weights": weights,
    }  # fmt: skip


CLASSES = np.float32([1.0, 4.0, 0.5])


OPTIONS = {
    "mask": ({"mask": "mask"}, lambda b: b["mask"] * 1.0),
    "lengths": ({"lengths": "lengths"}, lambda b: b["mask"] * 1.0),
    "labels": ({"mask": lambda b: b["label"] >= 0}, lambda b: b["mask"] * 1.0),
    "weights": ({"mask": "mask", "weights": "weights"}, lambda b: b["mask"] * b["weights"]),
    "classes": (
        {"lengths": "lengths", "class_weights": CLASSES},
        lambda b: b["mask"] * CLASSES[np.maximum(b["label"], 0)],
    ),
    "rows": (
        {"mask": "mask", "weights": lambda b: b["weights"][:, 0]},
        lambda b: b["mask"] * b["weights"][:, :1],
    ),
}


NET, TX = fnn.serial(fnn.dense(8), jnp.tanh, fnn.dense(C)), fnn.optim.sgd(0.1)


def oracle(params, batch, weights):
    """The weighted loss and metrics in float64."""
    logits = np.float64(NET(params, batch["image"])).reshape(-1, C)
    labels, w = batch["label"].reshape(-1), weights.reshape(-1)
    logits, labels, w = (a[w > 0] for a in (logits, labels, w))
    loss = np.average(oracles_batch.softmax_cross_entropy(logits, labels), weights=w)
    guess = logits.argmax(-1)
    f1 = sklearn.f1_score(labels, guess, average="macro", sample_weight=w)
    accuracy = np.average(guess == labels, weights=w)
    return {"loss": loss, "accuracy": accuracy, "f1": f1, "perplexity": np.exp(loss), "xent": loss}


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_in_parts_and_evaluations_are_of_the_whole_batch(name):
    options, weights = OPTIONS[name]
    batch = sequences()
    ts = fnn.train.init(NET, TX, jax.random.key(0), (1, T, 4))
    loss_fn = fnn.train.supervised(NET, XENT, MEASURES, **options)
    want = oracle(ts.params, batch, weights(batch))
    whole, in_whole = fnn.train.step(loss_fn, TX)(ts, batch)
    parts, in_parts = fnn.train.step(loss_fn, TX, grad=partial(accumulate, k=4))(ts, batch)
    for got in (in_whole, in_parts):
        assert set(got) == set(want)
        for metric in want:
            np.testing.assert_allclose(got[metric], want[metric], rtol=1e-5, err_msg=metric)
    for a, b in zip(*map(jax.tree.leaves, (whole.params, parts.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    measured = fnn.train.evaluator(NET, batch, MEASURES, batch_size=5, **options)(ts)
    for metric in measured:
        np.testing.assert_allclose(measured[metric], want[metric], rtol=1e-5, err_msg=metric)


def test_nan_behind_a_mask_reaches_no_gradient():
    """Of a layer's outputs, by a loss that takes the mask; and the labels there are no classes."""

    @fnn.compose(dense=fnn.dense(C))
    def net(f, x):
        return jnp.where(x[..., :1] > 0, f.dense(x), jnp.nan)

    x = asarray(np.random.default_rng(0).normal(size=(8, 4)), "float32")
    real = x[:, 0] > 0
    batch = {"image": x, "label": jnp.where(real, 1, -1), "mask": real}
    tx = fnn.optim.sgd(0.1)
    ts = fnn.train.init(net, tx, jax.random.key(0), (1, 4))
    loss_fn = fnn.train.supervised(net, XENT, MEASURES, mask="mask")
    after, got = fnn.train.step(loss_fn, tx)(ts, batch)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((after.params, got)))
    few = {name: a[real] for name, a in batch.items()}
    alone, wanted = fnn.train.step(fnn.train.supervised(net, XENT, MEASURES), tx)(ts, few)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        (after.params, got), (alone.params, wanted),
    )  # fmt: skip


def test_a_loss_function_of_ones_own_returns_means():
    def loss_fn(params, state, batch, key):
        logits, state = NET.apply(params, state, batch["image"])
        keep = batch["mask"]
        hits = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        loss = losses.mean(XENT(logits, batch["label"], mask=keep), keep)
        return loss + 0.01 * losses.l2(params), (state, {"accuracy": losses.mean(hits, keep)})

    batch = sequences()
    ts = fnn.train.init(NET, TX, jax.random.key(0), (1, T, 4))
    want = oracle(ts.params, batch, batch["mask"] * 1.0)
    penalty = 0.01 * losses.l2(ts.params)
    for grad in (jax.value_and_grad, partial(accumulate, k=4), partial(sam, rho=0.01)):
        _, got = fnn.train.step(loss_fn, TX, grad=grad)(ts, batch)
        np.testing.assert_allclose(got["loss"], want["loss"] + penalty, rtol=1e-5)
        np.testing.assert_allclose(got["accuracy"], want["accuracy"], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"mask": "weights"}, errors.DtypeError, "mask of bools"),
        ({"mask": "lengths"}, errors.DtypeError, "mask of bools"),
        ({"weights": "mask"}, errors.DtypeError, "weights of real numbers"),
        ({"lengths": "mask"}, errors.DtypeError, "lengths of integers"),
        ({"lengths": "label"}, errors.ShapeError, "before the time axis"),
        ({"mask": "none"}, errors.InputError, "a dict with none, its mask"),
        ({"mask": lambda b: b["mask"][:, :2]}, errors.ShapeError, "first axes"),
        ({"mask": lambda b: b["mask"][:2], "weights": "weights"}, errors.ShapeError, "first axis"),
        ({"class_weights": np.ones((2, 2), "f4")}, errors.ShapeError, "one per class"),
    ],
)
def test_masks_and_weights_that_do_not_fit(options, error, match):
    batch = sequences()
    ts = fnn.train.init(NET, TX, jax.random.key(0), (1, T, 4))
    with pytest.raises(error, match=match):
        fnn.train.step(fnn.train.supervised(NET, XENT, **options), TX)(ts, batch)
    with pytest.raises(errors.OptionError, match="a name, or a function of the batch"):
        fnn.train.supervised(NET, XENT, mask=np.ones(3, bool))
