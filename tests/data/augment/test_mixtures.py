"""Mixup and cutmix against NumPy, with partners and shares read from what they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import fnn
from fnn.data import augment
from tests.data.augment.support import keys
from tests.support import asarray, refused

B, C, KEY = 64, 70, jax.random.key(0)
LABELS = np.arange(B, dtype=np.int32)  # so that the labels tell who was mixed


X = np.arange(B, dtype=np.float32)[:, None]
PICTURES = np.random.default_rng(0).normal(size=(B, 3, 2)).astype(np.float32)
program = jax.jit(augment.mixup(0.7, C))


def mixed(x=PICTURES, labels=LABELS):
    return program(KEY, x, labels)


def read_pairs(p):
    """(partner, share of one's own) of each example, from the mixed labels."""
    p = np.float64(p)
    own = p[np.arange(B), np.arange(B)]
    rest = p.copy()
    rest[np.arange(B), np.arange(B)] = 0
    partner = np.where(rest.max(1) > 0, rest.argmax(1), np.arange(B))
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    assert (np.count_nonzero(p, axis=1) <= 2).all() and (p >= 0).all()
    return partner, own


def test_mixup_is_numpys():
    x = PICTURES
    y, p = mixed()
    partner, s = read_pairs(p)
    moved = (partner != np.arange(B)) & (s > 0) & (s < 1)
    assert len(set(partner[moved])) == moved.sum() > B * 0.8  # a permutation
    s = s[:, None, None]
    np.testing.assert_allclose(y, s * x + (1 - s) * x[partner], atol=1e-5)
    assert p.shape == (B, C) and p.dtype == np.float32


def test_mixup_shares_are_beta():
    """Of pairs of 0 and 1 the mixture is the share, or one minus it, and Beta is symmetric."""
    pairs = asarray(np.arange(B) % 2, jnp.float32)[:, None]
    two = jax.jit(jax.vmap(lambda key, a: augment.mixup(a)(key, pairs, pairs)[0], (0, None)))
    for alpha in (0.2, 2.0):
        shares = np.float64(two(keys(60), alpha)).ravel()
        shares = shares[(shares > 0) & (shares < 1)]
        assert scipy.stats.kstest(shares, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3
        assert len(np.unique(shares)) > 0.8 * len(shares)  # a draw for each pair


def test_cutmix_weighs_labels_by_pixels():
    x = np.broadcast_to(LABELS[:, None, None, None], (B, 13, 11, 2)).astype(np.uint8)
    y, p = map(np.asarray, jax.jit(augment.cutmix(1.0, C))(KEY, x, LABELS))
    partner, s = read_pairs(p)
    assert y.dtype == np.uint8
    for i in range(B):
        inside = (y[i] != i).any(-1)
        assert (y[i][inside] == partner[i]).all()
        np.testing.assert_allclose(inside.mean(), 1 - s[i], atol=1e-6)
        rows, cols = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if len(rows):
            assert inside.sum() == (np.ptp(rows) + 1) * (np.ptp(cols) + 1)  # one box
    assert 0.2 < (s < 0.9).mean() and np.unique(s).size > B / 3


def test_cutmix_boxes_have_the_shape_of_the_image_and_shares_of_beta():
    """Away from the edges their sides are floor(n sqrt(1 - r))."""
    x = np.zeros((B, 90, 60, 1), np.float32)
    x[1::2] = 1
    ys = jax.jit(jax.vmap(lambda key: augment.cutmix(1.0, 2)(key, x, LABELS % 2)[0]))(keys(6))
    changed = np.asarray(ys != x)[..., 0].reshape(-1, 90, 60)
    sides = []
    for inside in changed[changed.any((1, 2))]:
        rows, cols = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if min(rows[0], cols[0]) > 0 and rows[-1] < 89 and cols[-1] < 59:
            sides.append((len(rows), len(cols)))
    sides = np.array(sides)
    assert len(sides) > 5
    np.testing.assert_allclose(sides[:, 0] / 90, sides[:, 1] / 60, atol=0.03)


def test_floating_labels_are_mixed_as_they_are():
    target = np.random.default_rng(1).normal(size=(B, 3)).astype(np.float32)
    (y, labels), (_, p) = jax.jit(
        lambda: (augment.mixup(1.0)(KEY, X, target), augment.mixup(1.0, C)(KEY, X, LABELS))
    )()
    np.testing.assert_allclose(labels, p[:, :B] @ target, atol=1e-5)  # the same draws
    np.testing.assert_allclose(y[:, 0], p[:, :B] @ X[:, 0], atol=1e-4)


def test_labels_of_steps_and_trees_of_inputs():
    labels = asarray(np.random.default_rng(0).integers(0, 4, (B, 5)))
    x = {"a": X, "b": jnp.ones((B, 2, 2), jnp.bfloat16)}
    y, p = jax.jit(augment.mixup(1.0, 4))(KEY, x, labels)
    assert p.shape == (B, 5, 4) and y["b"].dtype == jnp.bfloat16 and (y["b"] == 1).all()
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)


def test_losses_take_mixed_labels():
    """Cross-entropy is linear in them: that of a mixture is the mixture of two."""
    logits = asarray(np.random.default_rng(0).normal(size=(B, C)), jnp.float32)
    _, p = mixed()
    partner, s = read_pairs(p)
    xent = fnn.losses.softmax_cross_entropy
    want = s * xent(logits, LABELS) + (1 - s) * xent(logits, LABELS[partner])
    np.testing.assert_allclose(xent(logits, p), want, rtol=1e-5)


def test_unknown_labels_are_nan_not_lost():
    labels = np.where(LABELS == 3, -1, np.where(LABELS == 5, C, LABELS))
    _, p = mixed(labels=labels.astype(np.int32))
    assert np.isnan(p[3]).all() and np.isnan(p[5]).all() and 2 <= np.isnan(p).any(1).sum() <= 4


def test_labels_of_narrow_dtypes_may_be_of_any_number_of_classes():
    """Of more than they can tell apart."""
    mix, dtypes = augment.mixup(1.0, 300), ("int32", "uint8", "int8")
    same, *others = jax.jit(lambda: [mix(KEY, X, asarray(LABELS, d))[1] for d in dtypes])()
    for p in others:
        np.testing.assert_array_equal(p, same)


def test_batches_of_one_and_of_none():
    batches = [(np.ones((n, 4, 4, 1), np.float32), np.zeros(n, np.int32)) for n in (0, 1)]
    mixes = (augment.mixup(1.0, 3), augment.cutmix(1.0, 3))
    found = jax.jit(lambda: [mix(KEY, *batch) for batch in batches for mix in mixes])()
    for (y, p), (x, labels) in zip(found, np.repeat(np.array(batches, object), 2, 0), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-6)
        np.testing.assert_allclose(p, np.eye(3)[labels], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: augment.mixup(0.0), "alpha above 0"),
        (lambda: augment.mixup(1.0, 0), "num_classes to be an int of at least 1"),
        (lambda: augment.mixup(1.0)(KEY, X, LABELS), "pass num_classes="),
        (lambda: augment.cutmix(1.0)(KEY, jnp.ones((B, 2, 2, 1)), LABELS), "pass num_classes="),
        (lambda: augment.mixup(1.0, C)(KEY, X, LABELS > 3), "cast: labels.astype(jnp.float32)"),
        (lambda: augment.mixup(1.0, C)(KEY, LABELS, LABELS), "mixup: expected x of floating"),
        (lambda: augment.mixup(1.0, C)(KEY, X[1:], LABELS), "one leading axis"),
        (lambda: augment.cutmix(1.0, C)(KEY, X, LABELS), "x [B, ..., H, W, C]"),
        (lambda: augment.mixup(1.0, C)(0, X, LABELS), "mixup: expected a key"),
    ],
)
def test_mistakes_are_named(call, words):
    assert words in str(refused(call))
