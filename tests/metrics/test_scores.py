"""Areas under curves and calibration, against scikit-learn and within their bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sklearn
from hypothesis import given
from hypothesis import strategies as st

from fnn import metrics
from tests.metrics.support import SEEDS, assert_close, at_once
from tests.support import asarray

AREAS = {bits: jax.jit(metrics.roc_auc(bits).value) for bits in (1, 4, 10)}


def shared_bits(scores, bits):
    """What is left of scores as the docstring says: their distance from 0, or 1, to some bits."""
    far = np.where(scores < 0.5, scores, scores - np.float32(1))
    fraction, exponent = np.frexp(np.float64(far))
    left = np.ldexp(np.trunc(np.ldexp(fraction, bits + 1)), exponent - bits - 1)
    return np.where(scores < 0.5, left, 2 + left)


@given(seed=SEEDS, bits=st.sampled_from(list(AREAS)), scale=st.sampled_from([0.3, 1, 1e3, 1e-9]))
def test_the_area_is_within_its_bound(seed, bits, scale):
    """Half the fraction of pairs that share their bits, counted pair by pair; ties count half."""
    rng = np.random.default_rng(seed)
    p, labels = (scale * rng.normal(size=40)).astype("float32"), np.arange(40) % 2
    at = shared_bits(p, bits)
    shared = np.mean([[a == b for a in at[labels == 1]] for b in at[labels == 0]])
    got = AREAS[bits](p, labels)
    assert abs(got - sklearn.roc_auc_score(labels, p)) <= shared / 2 + 1e-6
    assert_close(got, sklearn.roc_auc_score(labels, at))


# Scores of 20,000 examples, by a draw of normal numbers higher by 1 for those of class 1.
SCORES = {
    "plain": lambda z: z,
    "saturated below": lambda z: z - 12,
    "saturated above": lambda z: z + 100,
    "tied": lambda z: np.round(z),
    "infinite": lambda z: np.where(abs(z - 0.5) > 1.5, np.copysign(np.inf, z), z),
    "huge": lambda z: z * 1e18,
    "probabilities": lambda z: 1 / (1 + np.exp(-z)),
    "probabilities near 0": lambda z: np.exp(z - 25),
    "probabilities near 1": lambda z: 1 - np.exp(z - 11),
}


@pytest.mark.parametrize("rate", [0.5, 0.01])
@pytest.mark.parametrize("name", SCORES)
def test_areas_are_scikit_learns(name, rate):
    rng = np.random.default_rng(1)
    labels = rng.random(20_000) < rate
    scores = SCORES[name](rng.normal(size=labels.size) + labels).astype("float32")
    weights = rng.integers(0, 4, labels.size).astype("float32")
    got = areas(scores, labels, weights)
    scores = np.clip(scores, -1e20, 1e20)  # scikit-learn takes no infinities
    for i, w in enumerate((None, weights)):
        exact = sklearn.roc_auc_score(labels, scores, sample_weight=w)
        np.testing.assert_allclose(got[0][i], exact, atol=0.0005)
        exact = sklearn.average_precision_score(labels, scores, sample_weight=w)
        np.testing.assert_allclose(got[1][i], exact, atol=0.005)


@jax.jit
def areas(scores, labels, weights):
    return [
        [metric.value(scores, labels, None, w) for w in (None, weights)]
        for metric in (metrics.roc_auc(), metrics.average_precision())
    ]


def test_areas_of_infinities_nan_and_one_class():
    both = metrics.roc_auc(), metrics.average_precision()
    areas = jax.jit(lambda *args: jnp.stack([metric.value(*args) for metric in both]))
    for scores, labels, kept, want in (
        ([-np.inf, -3e38, 3e38, np.inf], [0, 0, 1, 1], 4, 1),
        ([0, 1, np.nan, 0], [0, 1, 1, 0], 3, np.nan),
        ([0, 1, np.nan, 0], [0, 1, 1, 0], 2, 1),
        ([0, 1, 0, 0], [1, 1, 0, 0], 2, np.nan),
        ([0, 1, 0, 0], [0, 0, 1, 1], 2, np.nan),
    ):
        got = areas(jnp.float32(scores), jnp.array(labels), jnp.arange(4) < kept)
        np.testing.assert_array_equal(got, [want, want])


def test_calibration_of_a_million_is_in_float32s_digits():
    """A sum of a million one by one in float32 would lose the fourth digit."""
    logits = np.tile(np.float32([[1.3, 0]]), (10**6, 1))
    labels = np.zeros(10**6, "int32")
    want = 1 - 1 / (1 + np.exp(-np.float64(np.float32(1.3))))
    got = jax.jit(metrics.calibration_error().value)(logits, labels)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_calibration_bins_are_closed_above():
    """Confidence 1/2, wrong, is in bin (0, 1/2]; 3/4, right, in the other."""
    logits, labels = jnp.log(jnp.float32([[1, 1], [3, 1]])), asarray([1, 0])
    assert_close(at_once(metrics.calibration_error(2), logits, labels), (0.5 + 0.25) / 2)
