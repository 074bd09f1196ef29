"""Masks, weights, lengths and class weights: parts of a batch give what the whole batch gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sklearn

import fnn
from fnn import errors, losses, metrics
from fnn.optim import accumulate, per_example_clip, sam, scale_loss
from tests.losses import oracles_batch
from tests.support import assert_close

B, T, C = 12, 5, 3
XENT = losses.softmax_cross_entropy


def masked(w, batch):
    return losses.mean(w * batch["x"], batch["mask"])


def scalar(w, batch):
    return losses.masked_mean(w * batch["x"], batch["mask"])


BATCH = {"x": jnp.arange(6.0), "mask": jnp.arange(6) < 4}


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_accumulated_masked_means_are_the_whole_batchs(k):
    """Of 0 ... 5 the first four count: w times 1.5, where the mean of two parts' means gives 2."""
    w = jnp.array(2.0)
    for got in (
        jax.jit(accumulate(masked, k))(w, BATCH),
        accumulate(scalar, k, weight=lambda w, batch: batch["mask"].sum())(w, BATCH),
        accumulate(scalar, k, weight=lambda w, batch: batch["mask"])(w, BATCH),
    ):
        np.testing.assert_allclose(got, [3.0, 1.5], rtol=1e-6)


def test_a_scalar_of_a_batch_with_bools_is_not_taken_for_a_plain_mean():
    with pytest.raises(errors.OptionError, match=r"accumulate: .*weight=") as caught:
        accumulate(scalar, k=2)(jnp.array(2.0), BATCH)
    assert "fnn.losses.mean" in caught.value.mend
    alike = accumulate(scalar, k=2, weight=lambda *_: 1)(jnp.array(2.0), BATCH)
    np.testing.assert_allclose(alike, [4.0, 2.0])
    plain = accumulate(lambda w, x: jnp.mean(w * x), k=2)(jnp.array(2.0), BATCH["x"])
    np.testing.assert_allclose(plain, [5.0, 2.5])
    with pytest.raises(errors.OptionError, match="weight to be a function"):
        accumulate(scalar, k=2, weight="mask")


def test_what_weighs_nothing_changes_nothing():
    """A part that is NaN behind its mask, whose scalar is 0 / 0; a batch without any example."""
    batch = BATCH | {"x": BATCH["x"].at[4:].set(jnp.nan)}
    np.testing.assert_allclose(accumulate(masked, k=3)(jnp.array(2.0), batch), [3.0, 1.5])

    def ratio(w, batch):
        keep = batch["mask"]
        return jnp.sum(w * jnp.where(keep, batch["x"], 0)) / jnp.sum(keep).astype(jnp.float32)

    got = accumulate(ratio, k=3, weight=lambda w, batch: batch["mask"].sum())(jnp.array(2.0), batch)
    np.testing.assert_allclose(got, [3.0, 1.5])
    none = BATCH | {"mask": jnp.zeros(6, bool)}
    np.testing.assert_array_equal(accumulate(masked, k=2)(jnp.array(2.0), none), [0, 0])
    np.testing.assert_array_equal(
        jax.value_and_grad(lambda w: masked(w, none).value)(jnp.array(2.0)), [0, 0]
    )


@pytest.mark.parametrize(
    "wrap",
    [
        partial(accumulate, k=2), partial(sam, rho=0.0), partial(scale_loss, scale=8.0),
        partial(per_example_clip, max_norm=1e9),
    ],
    ids=["accumulate", "sam", "scale_loss", "per_example_clip"],
)  # fmt: skip
def test_every_wrapper_takes_means(wrap):
    def loss(w, batch):
        mean = losses.mean(w * batch["x"], None, batch["weight"])
        return mean, {"again": mean, "scalar": mean.value, "state": jnp.mean(batch["x"])}

    batch = {"x": jnp.arange(6.0), "weight": jnp.float32([1, 2, 0, 4, 0, 0.5])}
    (value, aux), g = jax.jit(wrap(loss, has_aux=True))(jnp.array(2.0), batch)
    want = np.average(np.arange(6), weights=batch["weight"])
    assert_close(value, 2 * want, dtype="float32")
    assert_close(aux["again"].value, 2 * want, dtype="float32")
    assert_close(aux["scalar"], 2 * want, dtype="float32")
    if wrap.func is not per_example_clip:  # whose sum is over the number of examples
        assert_close(g, want, dtype="float32")
    bare = wrap(lambda w, batch: loss(w, batch)[0])(jnp.array(2.0), batch)
    assert_close(bare[0], value, dtype="float32")
    assert_close(bare[1], g, dtype="float32")


def test_means_are_weighted_averages_and_take_penalties():
    rng = np.random.default_rng(0)
    x, w, mask = rng.normal(size=(4, 3)), rng.uniform(size=4), rng.random((4, 3)) < 0.7
    both = np.where(mask, np.broadcast_to(w[:, None], (4, 3)), 0)
    want = np.average(x, weights=both)
    mean = losses.mean(*(jnp.asarray(a) for a in (x.astype("f4"), mask, w.astype("f4"))))
    assert_close(mean.value, want, dtype="float32")
    assert_close(mean.weight, both.sum(), dtype="float32")
    penalty = jnp.float32(5)
    for got, exact in (
        (mean + penalty, want + 5), (penalty + mean, want + 5), (mean - 1, want - 1),
        (0.5 * mean, want / 2), (mean * penalty, want * 5), (-mean, -want), (mean / 4, want / 4),
    ):  # fmt: skip
        assert_close(got.value, exact, dtype="float32")
        assert got.weight == mean.weight
    with pytest.raises(errors.InputError, match="another Mean"):
        mean + mean
    narrow = losses.mean(jnp.ones(3, jnp.bfloat16))
    assert narrow.value == 1 and narrow.total.dtype == jnp.float32
    rows = jnp.array([True, False, True, False])
    assert_close(losses.mean(jnp.asarray(x, "float32"), rows).value, x[::2].mean(), dtype="float32")
    for wrong, error in (
        ((jnp.ones(3), jnp.ones(3)), errors.DtypeError),
        ((jnp.ones(3), None, jnp.ones(3, bool)), errors.DtypeError),
        ((jnp.ones((3, 2)), None, jnp.ones(2)), errors.ShapeError),
        ((jnp.ones((3, 2)), jnp.ones(2, bool)), errors.ShapeError),
        ((jnp.arange(3),), errors.DtypeError),
    ):
        with pytest.raises(error, match=r"^mean: "):
            losses.mean(*wrong)


def test_class_weights_are_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(7, C)).astype("f4"), rng.integers(0, C, 7)
    weights = np.float32([1, 5, 0.2])
    want = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(weights)
    )
    labels = jnp.asarray(labels, "int32")
    own = losses.class_weights(jnp.asarray(weights), labels)
    got = losses.mean(XENT(jnp.asarray(logits), labels), None, own).value
    assert_close(got, float(want), dtype="float32")
    outside = losses.class_weights(jnp.asarray(weights), jnp.array([-1, 3]))
    assert np.isnan(outside).all()


# --- inside a training step


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

    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), "float32")
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
