"""Weighted means, which know their weight: in parts, under every wrapper, with penalties."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import errors, losses
from fnn.optim import accumulate, per_example_clip, sam, scale_loss
from tests.support import asarray, assert_close


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
    mean = losses.mean(*(asarray(a) for a in (x.astype("f4"), mask, w.astype("f4"))))
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
    rows = asarray([True, False, True, False])
    assert_close(losses.mean(asarray(x, "float32"), rows).value, x[::2].mean(), dtype="float32")
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
    logits, labels = rng.normal(size=(7, 3)).astype("f4"), rng.integers(0, 3, 7)
    weights = np.float32([1, 5, 0.2])
    want = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(weights)
    )
    labels = asarray(labels, "int32")
    own = losses.class_weights(asarray(weights), labels)
    got = losses.mean(losses.softmax_cross_entropy(asarray(logits), labels), None, own).value
    assert_close(got, float(want), dtype="float32")
    outside = losses.class_weights(asarray(weights), asarray([-1, 3]))
    assert np.isnan(outside).all()
