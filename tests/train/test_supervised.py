"""The usual loss function, with augmentations of examples and mixtures of batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors, train
from fnn.core.names import folded
from fnn.data import augment
from fnn.losses import softmax_cross_entropy as xent
from tests.support import asarray, refused
from tests.train.support import assert_same_bits, data, dense_net

KEY, B, C = jax.random.key(0), 8, 3
BATCH = data(n=B)
IDENTITY = fnn.serial(lambda x: x)


def seen_by(loss_batch=BATCH, **options):
    """(outputs, labels) that the loss gets, where the network is the identity."""
    seen = []

    def loss(outputs, labels):
        seen.append((outputs, labels))
        return jnp.zeros(B)

    train.supervised(IDENTITY, loss, **options)({}, {}, loss_batch, KEY)
    return seen[0]


def test_each_example_is_augmented_by_a_key_of_its_own():
    noise = augment.noise(1.0)
    x, labels = seen_by(augment=noise)
    keys = jax.random.split(folded(KEY, "augment"), B)
    np.testing.assert_allclose(x, jax.vmap(noise)(keys, BATCH["image"]), atol=1e-6)
    assert len(np.unique(np.asarray(x - BATCH["image"]).round(5))) == x.size
    np.testing.assert_array_equal(labels, BATCH["label"])


def test_x_may_be_a_tree_and_may_change_its_shape():
    images = np.ones((B, 6, 6, 1), np.float32)
    batch = {"image": {"a": images, "b": np.arange(B)}, "label": BATCH["label"]}
    cut = augment.crop(4)
    x, _ = seen_by(batch, augment=lambda key, x: {**x, "a": cut(key, x["a"])})
    assert x["a"].shape == (B, 4, 4, 1)
    np.testing.assert_array_equal(x["b"], np.arange(B))


def test_numpys_arrays_are_augmented_as_they_are():
    """As the network reads them: bytes in order, and nothing that its dtype does not hold."""
    swapped = {**BATCH, "image": BATCH["image"].astype(">f4")}
    x, _ = seen_by(swapped, augment=lambda key, x: 2 * x)
    np.testing.assert_array_equal(x, 2 * BATCH["image"])
    large = {**BATCH, "image": np.full((B, 2), 2**40)}
    error = refused(lambda: seen_by(large, augment=stand_still))
    assert str(error).startswith("supervised: expected x that int32 holds")


def test_a_mixture_comes_after_the_augmentation_with_a_key_of_its_own():
    mix = jax.jit(augment.mixup(1.0, C))
    x, labels = seen_by(augment=lambda key, x: 2 * x, mix=mix)
    want = mix(folded(KEY, "mix"), 2 * BATCH["image"], asarray(BATCH["label"]))
    np.testing.assert_allclose(x, want[0], rtol=1e-6)
    np.testing.assert_allclose(labels, want[1], rtol=1e-6)


def stand_still(key, x):
    jax.random.normal(key, (3,))
    return x


def swap(key, x, labels):
    return x[::-1], labels[::-1]


def test_the_networks_own_draws_are_those_without():
    net = dense_net()  # with dropout
    params, state = net.init(KEY, (1, 4))
    make = partial(train.supervised, net, xent, {"accuracy": fnn.metrics.accuracy()})
    options = ({}, {"augment": stand_still}, {"mix": lambda key, x, labels: (x, labels)})
    found = jax.jit(lambda: [make(**o)(params, state, BATCH, KEY) for o in options])()
    for other in found[1:]:
        assert_same_bits(found[0], other)


def test_metrics_get_the_labels_as_they_came():
    logits = np.eye(C, dtype=np.float32)[BATCH["label"]] * 9
    batch = {"image": logits, "label": BATCH["label"]}
    make = partial(train.supervised, IDENTITY, xent, {"accuracy": fnn.metrics.accuracy()})

    def blur(key, x, labels):
        return x, jnp.full((B, C), 1 / C)

    loss, (_, measured) = make(mix=blur)({}, {}, batch, KEY)
    assert measured["accuracy"].value == 1
    np.testing.assert_allclose(loss, np.log(np.exp(9) + 2) - 9 / C, rtol=1e-5)
    loss, (_, measured) = make(mix=swap)({}, {}, batch, KEY)  # both x and labels, for the loss
    assert loss < 1e-3
    right = (BATCH["label"][::-1] == BATCH["label"]).mean()
    np.testing.assert_allclose(measured["accuracy"].value, right, rtol=1e-6)


def test_masks_and_weights_are_of_the_batch_as_it_came():
    mask, weights = np.arange(B) % 4 > 0, np.linspace(0.5, 2, B, dtype=np.float32)
    batch = {**BATCH, "image": BATCH["image"][:, :C], "mask": mask, "w": weights}
    mix = jax.jit(augment.mixup(1.0, C))
    options = {"mask": "mask", "weights": "w", "mix": mix}
    loss, _ = train.supervised(IDENTITY, xent, **options)({}, {}, batch, KEY)
    each = xent(*mix(folded(KEY, "mix"), batch["image"], asarray(batch["label"])))
    want = np.average(each, weights=weights * mask)
    np.testing.assert_allclose(loss.value, want, rtol=1e-5)


def test_class_weights_go_with_augmentations_and_not_with_mixtures():
    weights = np.float32([1, 2, 3])
    options = {"class_weights": weights, "augment": stand_still}
    batch = {**BATCH, "image": BATCH["image"][:, :C]}
    loss, _ = train.supervised(IDENTITY, xent, **options)({}, {}, batch, KEY)
    each = xent(asarray(batch["image"]), asarray(batch["label"]))
    np.testing.assert_allclose(
        loss.value, np.average(each, weights=weights[batch["label"]]), rtol=1e-5
    )
    with pytest.raises(errors.OptionError, match="supervised: expected mix without class_weights"):
        train.supervised(IDENTITY, xent, class_weights=weights, mix=swap)


MISTAKES = [
    ({"augment": augment.flip}, "expected augment to be built, got flip; call it: flip("),
    ({"mix": augment.mixup}, "call it: mixup("),
    ({"augment": 3}, "augment to be a function of (key, x)"),
    ({"mix": "mixup"}, "mix to be a function of (key, x, labels)"),
    ({"mix": lambda key, x, labels: x}, "supervised: expected mix to return (x, labels)"),
    ({"augment": augment.rotate(3)}, "rotate: expected x [..., H, W, C]"),
    ({"names": ("x", "y")}, "supervised: expected a batch that is a dict with x, y"),
]


@pytest.mark.parametrize(("options", "words"), MISTAKES)
def test_mistakes_are_named(options, words):
    error = refused(lambda: train.supervised(IDENTITY, xent, **options)({}, {}, BATCH, KEY))
    assert words in str(error)


# --- in whole runs

IMAGES = np.random.default_rng(0).normal(size=(24, 6, 6, 1)).astype(np.float32)
DATA = {"image": IMAGES, "label": np.arange(24) % C}
NET = fnn.serial(fnn.flatten(3), fnn.dense(C))


def halve(key, x, labels):
    """With the batch in reverse."""
    p = jax.nn.one_hot(labels, C)
    return (x + x[::-1]) / 2, (p + p[::-1]) / 2


def run_of(key, strength, **options):
    """A run whose strength of augmentation may be traced."""
    tx = fnn.optim.sgd(0.1)
    noisy = augment.chain(augment.shift(1), noise=augment.noise(strength))
    loss_fn = train.supervised(NET, xent, augment=noisy, mix=halve)
    ts = train.init(NET, tx, key, (1, 6, 6, 1))
    return ts, train.step(loss_fn, tx, **options)


def test_fit_and_run_take_the_same_steps_and_evaluation_sees_no_augmentation():
    ts, step = run_of(KEY, 0.3)
    accuracy = {"loss": xent}
    evaluate = train.evaluator(NET, DATA, accuracy)
    fitted, history = train.fit(
        step, ts, DATA, epochs=2, batch_size=8, evaluate=evaluate, progress=False
    )
    run, found = train.run(step, ts, DATA, steps=6, batch_size=8)
    for a, b in zip(*map(jax.tree.leaves, (fitted.params, run.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history["train"]["loss"], found["train"]["loss"], rtol=1e-5)
    plain = xent(NET(fitted.params, IMAGES), asarray(DATA["label"], jnp.int32)).mean()
    np.testing.assert_allclose(history["eval"]["loss"][-1], plain, rtol=1e-5)


def test_a_sweep_over_the_strength():
    def losses(key, strength):
        ts, step = run_of(key, strength)
        return train.run(step, ts, DATA, steps=2, batch_size=8)[1]["train"]["loss"]

    strengths = np.float32([0.0, 0.3])
    keys = jax.random.split(KEY, 2)
    found = fnn.search.sweep(
        losses, {"strength": strengths}, keys=keys, strategy="vmap", progress=False
    )
    many = found.grid(found.results)
    assert many.shape == (2, 2, 2) and np.isfinite(many).all()
    assert np.abs(many[0] - many[1]).max() > 1e-4  # the strength matters


def test_accumulated_parts_are_augmented_each():
    ts, step = run_of(KEY, 0.3, grad=partial(fnn.optim.accumulate, k=2))
    after, metrics = step(ts, {name: a[:8] for name, a in DATA.items()})
    assert np.isfinite(metrics["loss"]) and after.step == 1
