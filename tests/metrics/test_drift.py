"""Drift against float64 loops, and against SciPy's two-sample test."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors, metrics
from tests.metrics import oracles
from tests.metrics.support import SEEDS, assert_close
from tests.support import asarray, refused, same_under_jit

psi_of = jax.jit(metrics.population_stability_index, static_argnums=2)
ks_of = jax.jit(metrics.kolmogorov_smirnov)


def features(rng, n, shift=0.0):
    """Normal, with many ties, two values, one value, and with a third missing."""
    x = rng.normal(size=(n, 5)) + shift
    x[:, 1] = np.round(x[:, 1])
    x[:, 2] = rng.random(n) < 0.05 + 0.1 * shift
    x[:, 3] = 7.0
    x[rng.random(n) < 0.3, 4] = np.nan
    return x.astype("float32")


@pytest.mark.parametrize("bins", [2, 5, 10])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_index_is_a_loop_s(bins, shift):
    rng = np.random.default_rng(bins)
    then, now = features(rng, 83), features(rng, 61, shift)
    got, binned = psi_of(then, now, bins), metrics.histogram(then, bins)
    for i in range(5):
        edges = oracles.edges(then[:, i], bins)
        counts = oracles.counts(edges, then[:, i])
        np.testing.assert_array_equal(binned["edges"][i], edges)
        np.testing.assert_array_equal(binned["counts"][i], counts)
        assert_close(got[i], oracles.psi(counts, oracles.counts(edges, now[:, i])), 1e-5)
    assert got.dtype == binned["counts"].dtype == jnp.float32


def test_bins_hold_equal_shares_and_single_values_their_own():
    x = np.random.default_rng(0).permutation(100).astype("float32")
    binned = metrics.histogram(x, 4)
    np.testing.assert_array_equal(binned["edges"], [24, 49, 74])
    np.testing.assert_array_equal(binned["counts"], [25, 25, 25, 25, 0])
    zeros = np.r_[np.zeros(60), np.arange(1, 41)].astype("float32")
    np.testing.assert_array_equal(metrics.histogram(zeros, 5)["counts"], [0, 60, 0, 20, 20, 0])


@pytest.mark.parametrize("now", [4.0, 6.0, np.nan])
def test_a_constant_that_moves_anywhere_is_seen(now):
    """All of one bin into another: two terms (1 - e) log(1 / e)."""
    then, now = jnp.full(20, 5.0), jnp.full(30, now)
    want = 2 * (1 - 1e-4) * np.log(1e4)
    assert_close(psi_of(then, now, 10), want, 1e-5)
    assert psi_of(then, then, 10) == 0


def test_classes_and_counts():
    then, now = asarray([0] * 50 + [1] * 30 + [2] * 20), asarray([0] * 5 + [2] * 3 + [3] * 2)
    p, q = np.array([0.5, 0.3, 0.2, 1e-4]), np.array([0.5, 1e-4, 0.3, 0.2])
    want = np.sum((q - p) * np.log(q / p))
    assert_close(metrics.population_stability_index(then, now, jnp.arange(4.0) - 0.5), want, 1e-5)
    assert_close(metrics.population_stability_index(then, now, [-0.5, 0.5, 1.5, 2.5]), want, 1e-5)
    counts = asarray([[50, 30, 20, 0], [1, 1, 1, 1]]), asarray([[5, 0, 3, 2], [2, 2, 2, 2]])
    assert_close(metrics.population_stability_index(*counts, bins=None), [want, 0], 1e-5)
    p, q = np.maximum(p, 0.01), np.maximum(q, 0.01)
    got = metrics.population_stability_index(*counts, bins=None, epsilon=0.01)
    assert_close(got[0], np.sum((q - p) * np.log(q / p)), 1e-5)
    assert np.isnan(metrics.population_stability_index(counts[0][0], jnp.zeros(4), None))


@given(counts=st.lists(st.tuples(*[st.integers(0, 2**24)] * 2), min_size=8, max_size=8))
def test_the_index_is_never_negative(counts):
    p, q = np.float32(counts).T
    assert not psi_of(p, q, None) < 0
    assert not psi_of(p, p + np.float32([0, 1, 0, 0, 0, 0, 0, 0]), None) < 0


@given(seed=SEEDS)
def test_kolmogorov_smirnov_is_scipy_s(seed):
    rng = np.random.default_rng(seed)
    then, now = features(rng, 40), features(rng, 25, rng.choice([0, 0.3, 1]))
    got = ks_of(then, now)
    for i in range(5):
        a, b = (np.nan_to_num(np.float64(x[:, i]), nan=1e9) for x in (then, now))
        want = scipy.stats.ks_2samp(a, b).statistic
        assert_close(got.statistic[i], want, 1e-6)
        z = want * (40 * 25 / 65) ** 0.5
        assert_close(got.pvalue[i], scipy.special.kolmogorov(z), 1e-5)


def test_p_values_over_their_whole_range():
    """Two samples of which a share d lies apart; relative errors, down to 1e-30."""
    x = np.arange(2000.0)
    for d in (0.0, 0.0005, 0.01, 0.02, 0.0315, 0.032, 0.05, 0.1, 0.2):
        found = ks_of(x, x + 2000 * d)
        want = scipy.special.kolmogorov(d * 1000**0.5)
        np.testing.assert_allclose(found.statistic, d, atol=1e-7)
        np.testing.assert_allclose(found.pvalue, want, rtol=1e-4)


def test_a_stream_is_the_function_of_all_that_counts():
    rng = np.random.default_rng(1)
    then, now, keep = features(rng, 200), features(rng, 90, 0.4), rng.random(90) < 0.7
    reference = metrics.histogram(then, 5)
    worst = np.where(keep[:, None], now, np.inf)
    batches = worst.reshape(3, 30, 5), None, keep.reshape(3, 30)
    for window in (1, 2, 3):
        since = slice(90 - 30 * window, None)
        now_, keep_ = now[since], keep[since]
        got = {
            name: metrics.over_time(
                metrics.windowed(metrics.drift(reference, name), window), *batches
            )[-1]
            for name in ("psi", "ks", "counts")
        }
        for i in range(5):
            edges = oracles.edges(then[:, i], 5)
            p, q = (oracles.counts(edges, x[:, i]) for x in (then, now_[keep_]))
            np.testing.assert_array_equal(got["counts"][i], q)
            assert_close(got["psi"][i], oracles.psi(p, q), 1e-5)
            assert_close(got["ks"][i], oracles.binned_ks(p, q), 1e-6)


def test_binned_distances_fall_short_by_no_more_than_the_largest_bin():
    rng = np.random.default_rng(2)
    for bins in (3, 12):
        then, now = features(rng, 300), features(rng, 200, 0.3)
        reference = metrics.histogram(then, bins)
        got = np.asarray(metrics.drift(reference, "ks").value(now, None))
        exact = np.asarray(ks_of(then, now).statistic)
        short = exact - got
        assert (short > -1e-6).all()
        assert (short <= np.max(reference["counts"], axis=-1) / 300 + 1e-6).all()
        assert short[0] > 1e-3  # the bound is of use


def test_weights_masks_of_rows_and_of_entries():
    x = asarray([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    metric = metrics.drift(metrics.histogram(x, asarray([0.5, 5.0])), "counts")
    np.testing.assert_array_equal(metric.value(x, None)[0], [1, 1, 1, 0])
    rows = metric.value(x, None, asarray([True, False, True]), asarray([2.0, 1.0, 0.5]))
    np.testing.assert_array_equal(rows, [[2, 0, 0.5, 0]] * 2)
    entries = metric.value(x, None, asarray([[True, False], [True, True], [False, True]]))
    np.testing.assert_array_equal(entries, [[1, 1, 0, 0], [0, 1, 1, 0]])


def test_a_reference_is_a_plain_tree_that_a_file_keeps():
    rng = np.random.default_rng(3)
    then, now = (features(rng, 50).reshape(50, 5, 1) for _ in range(2))
    reference, file = metrics.histogram(then), io.BytesIO()
    np.savez(file, **reference)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        read = dict(arrays)
    want = metrics.drift(reference).value(now, None)
    assert want.shape == (5, 1)
    np.testing.assert_array_equal(metrics.drift(read).value(now, None), want)
    traced = jax.jit(lambda reference: metrics.drift(reference).value(now, None))(reference)
    assert_close(traced, want)


def test_float64_and_narrow_values():
    x = np.random.default_rng(4).normal(size=(2, 80))
    edges = oracles.edges(x[0], 10)
    want = oracles.psi(*(oracles.counts(edges, v) for v in x))
    with jax.enable_x64(True):
        got, found = psi_of(*x, 10), ks_of(*x)
    assert got.dtype == found.pvalue.dtype == np.float64
    assert_close(got, want, 1e-12)
    test = scipy.stats.ks_2samp(*x)
    assert_close(found.statistic, test.statistic, 1e-14)
    assert_close(found.pvalue, scipy.special.kolmogorov(test.statistic * 40**0.5), 1e-12)
    half = x.astype("float16")
    got = ks_of(*half)
    assert got.pvalue.dtype == jnp.float32
    assert_close(got.statistic, scipy.stats.ks_2samp(*half).statistic, 1e-6)


X = jnp.ones((4, 2))


@pytest.mark.parametrize(
    ("call", "args", "kind", "text"),
    [
        (metrics.histogram, (jnp.ones((0, 2)),), errors.ShapeError, "N at least 1"),
        (metrics.histogram, (jnp.ones(()),), errors.ShapeError, "[N, ...]"),
        (metrics.histogram, (X.astype("complex64"),), errors.DtypeError, "real"),
        (lambda x: metrics.histogram(x, 1), (X,), errors.OptionError, "bins"),
        (lambda x: metrics.histogram(x, None), (X,), errors.InputError, "bins"),
        (lambda x: metrics.histogram(x, np.ones((3, 5))), (X,), errors.ShapeError, "[E]"),
        (lambda x: metrics.histogram(x, [2.0, 1.0]), (X,), errors.OptionError, "rise"),
        (metrics.population_stability_index, (X, X[:, :1]), errors.ShapeError, "features (2,)"),
        (metrics.kolmogorov_smirnov, (X, X[0]), errors.ShapeError, "features (2,)"),
        (metrics.kolmogorov_smirnov, (X, X[:0]), errors.ShapeError, "N at least 1"),
        (
            lambda p, q: metrics.population_stability_index(p, q, None),
            (jnp.ones(3), jnp.ones(4)),
            errors.ShapeError,
            "same bins",
        ),
        (metrics.drift(metrics.histogram(X)).value, (X[0], X), errors.ShapeError, "drift"),
        (metrics.drift(metrics.histogram(X)).value, (X, X, X), errors.DtypeError, "mask"),
        (metrics.drift, (X,), errors.InputError, "histogram"),
        (metrics.drift, ({"edges": X, "counts": X},), errors.ShapeError, "histogram"),
    ],
)
def test_wrong_inputs_are_refused_traced_or_not(call, args, kind, text):
    error = same_under_jit(call, *args)
    assert isinstance(error, kind) and text in str(error)


def test_wrong_options_are_refused():
    x = jnp.ones(3)
    reference = metrics.histogram(x)
    assert "psi" in str(refused(lambda: metrics.drift(reference, "chi"), errors.OptionError))
    for epsilon in (0, -1.0, None):
        refused(
            lambda e=epsilon: metrics.population_stability_index(x, x, epsilon=e),
            errors.OptionError,
        )


def test_the_evaluator_takes_it_after_a_function_of_the_outputs():
    """Of the predicted classes, over padded batches."""
    rng, net = np.random.default_rng(5), fnn.dense(3)
    data = {"image": rng.normal(size=(50, 4)).astype("float32"), "label": np.zeros(50, "int32")}
    ts = fnn.train.init(net, fnn.optim.sgd(0.1), jax.random.key(0), (1, 4))
    guessed = np.argmax(net(ts.params, data["image"]), axis=-1)
    reference = metrics.histogram(np.repeat([0, 1, 2], [10, 20, 30]), np.arange(4) - 0.5)
    watched = metrics.after(lambda logits: logits.argmax(-1), metrics.drift(reference))
    got = fnn.train.evaluator(net, data, {"drift": watched}, batch_size=16)(ts)["drift"]
    assert_close(got, oracles.psi([10, 20, 30], np.bincount(guessed, minlength=3)), 1e-5)
