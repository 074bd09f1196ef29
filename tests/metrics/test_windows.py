"""Windows and decays against NumPy and scikit-learn on what they remember."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sklearn

from fnn import errors, metrics
from tests.metrics.support import TABLE, C, assert_close, draw
from tests.support import asarray, refused

T, B, WINDOW, HALF_LIFE = 9, 6, 3, 2.5
NAMES = ("accuracy", "calibration_error", "r2", "confusion_matrix", "roc_auc", "mean")
first = metrics.mean(lambda outputs, labels: outputs)


@functools.cache
def stream():
    """T batches of each kind, the fourth masked entirely, and what was masked worst of all."""
    rng = np.random.default_rng(0)
    keep = rng.random((T, B)) < 0.8
    keep[3] = False
    data = {}
    for kind in ("classes", "scores", "numbers"):
        outputs, labels = draw(kind, rng, T * B)
        outputs[~keep.ravel()] = np.nan
        data[kind] = outputs.reshape(T, B, *outputs.shape[1:]), labels.reshape(T, B)
    return data, keep


def series(wrap, data, keep, names=NAMES):
    """The values of wrapped metrics over time, in one program."""

    @jax.jit
    def run(data, keep):
        return {
            name: metrics.over_time(wrap(TABLE[name].metric), *data[TABLE[name].kind], keep)
            for name in names
        }

    return run(data, keep)


def test_a_window_is_the_metric_of_its_batches():
    data, keep = stream()
    got = series(lambda metric: metrics.windowed(metric, WINDOW), data, keep)
    for name in NAMES:
        outputs, labels = data[TABLE[name].kind]
        for t in range(T):
            since = slice(max(t - WINDOW + 1, 0), t + 1)
            x, y = outputs[since][keep[since]], labels[since][keep[since]]
            assert_close(got[name][t], TABLE[name].oracle(np.float64(x), y), 1e-5, f"{name} {t}")


SKLEARN = {
    "accuracy": lambda x, y, w: sklearn.accuracy_score(y, x.argmax(-1), sample_weight=w),
    "confusion_matrix": lambda x, y, w: sklearn.confusion_matrix(
        y, x.argmax(-1), labels=range(C), sample_weight=w
    ),
    "roc_auc": lambda x, y, w: sklearn.roc_auc_score(y, x, sample_weight=w),
    "r2": lambda x, y, w: sklearn.r2_score(y, x, sample_weight=w),
}


def test_a_decay_is_a_weight_of_every_example():
    data, keep = stream()
    got = series(lambda metric: metrics.decayed(metric, HALF_LIFE), data, keep, tuple(SKLEARN))
    for name, oracle in SKLEARN.items():
        outputs, labels = data[TABLE[name].kind]
        for t in range(2, T):  # before, there is one class alone
            since = slice(0, t + 1)
            age = np.broadcast_to(np.arange(t, -1, -1)[:, None], (t + 1, B))
            x, y, w = (a[since][keep[since]] for a in (outputs, labels, 0.5 ** (age / HALF_LIFE)))
            assert_close(got[name][t], oracle(np.float64(x), y, w), 1e-5, f"{name} {t}")


def test_a_long_half_life_is_not_rounded_away():
    """The sum of weights after 1e5 updates: (1 - d**T) / (1 - d); float32 alone is off by 1e-4."""
    half_life, updates = 2e4, 10**5
    cells = metrics.decayed(metrics.confusion_matrix(2), half_life)
    logits, labels = jnp.eye(2)[:1], jnp.zeros(1, int)

    @jax.jit
    def run(half_life):
        cells = metrics.decayed(metrics.confusion_matrix(2), half_life)  # a tracer

        def body(accumulator, _):
            return cells.update(accumulator, logits, labels), None

        return cells.compute(jax.lax.scan(body, cells.init(), length=updates)[0])

    decay = 0.5 ** (1 / half_life)
    assert_close(run(half_life)[0, 0], (1 - decay**updates) / (1 - decay), 2e-6)
    assert cells.value(logits, labels)[0, 0] == 1


def test_what_is_not_finite_leaves_a_window_and_stays_in_a_decay():
    x = asarray([[1.0], [jnp.nan], [jnp.inf], [3.0], [5.0], [7.0]])
    got = metrics.over_time(metrics.windowed(first, 2), x, x)
    np.testing.assert_array_equal(got, [1, np.nan, np.nan, np.inf, 4, 6])
    got = metrics.over_time(metrics.decayed(first, 2.0), x[2:], x[2:])
    np.testing.assert_array_equal(got, [np.inf] * 4)
    got = metrics.over_time(metrics.decayed(first, 2.0), x, x)
    assert np.isnan(got[1:]).all()


@pytest.mark.parametrize("wrap", [metrics.windowed, metrics.decayed])
def test_nothing_gives_nan_and_an_empty_batch_changes_no_mean(wrap):
    metric, x = wrap(first, 3), jnp.arange(4.0)
    assert np.isnan(metric.compute(metric.init()))
    accumulator = metric.update(metric.init(), x[:0], x[:0])
    assert np.isnan(metric.compute(accumulator))
    accumulator = metric.update(metric.update(accumulator, x, x), x[:0], x[:0])
    assert_close(metric.compute(accumulator), 1.5)


@pytest.mark.parametrize("wrap", [metrics.windowed, metrics.decayed])
def test_parts_side_by_side_add_up_and_lanes_are_streams(wrap):
    data, keep = stream()
    metric, (outputs, labels) = wrap(TABLE["calibration_error"].metric, 2), data["classes"]
    halves = [outputs[:, :3], outputs[:, 3:]], [labels[:, :3], labels[:, 3:]]
    halves = *map(jnp.stack, halves), jnp.stack([keep[:, :3], keep[:, 3:]])

    @jax.jit
    @jax.vmap
    def run(*batches):
        def body(accumulator, batch):
            return metric.update(accumulator, *batch), None

        return jax.lax.scan(body, metric.init(), batches)[0]

    together = run(*(a[None] for a in (outputs, labels, keep)))
    summed = jax.tree.map(lambda a: a.sum(0), run(*halves))
    whole = jax.tree.map(lambda a: a[0], together)
    assert_close(metric.compute(summed), metric.compute(whole), 1e-5)


def test_weights_are_the_metric_s_own():
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(5, 4)).astype("float32"), rng.random((5, 4)).astype("float32")
    got = metrics.over_time(metrics.windowed(first, 2), x, x, None, w)
    want = [
        np.average(x[max(t - 1, 0) : t + 1], weights=w[max(t - 1, 0) : t + 1]) for t in range(5)
    ]
    assert_close(got, want, 1e-5)


def test_metrics_of_other_makes():
    """Accumulators that are plain arrays; whole numbers among them can be kept, but not fade."""

    def update(a, outputs, labels, mask=None):
        return {"sum": a["sum"] + outputs.sum(), "n": a["n"] + outputs.size}

    def mean(dtype):
        start = {"sum": jnp.zeros(()), "n": jnp.zeros((), dtype)}
        return metrics.Metric(
            lambda: start, update, lambda a: a["sum"] / a["n"].astype(jnp.float32)
        )

    x = asarray([[1.0], [2.0], [6.0]])
    for dtype in (jnp.int32, jnp.float32):
        got = metrics.over_time(metrics.windowed(mean(dtype), 2), x, x)
        np.testing.assert_allclose(got, [1, 1.5, 4])
    got = metrics.over_time(metrics.decayed(mean(jnp.float32), 1.0), x, x)
    np.testing.assert_allclose(got, [1, 2.5 / 1.5, 7.25 / 1.75], rtol=1e-6)
    error = refused(lambda: metrics.decayed(mean(jnp.int32), 1.0), errors.OptionError)
    assert "n () int32" in str(error)


def test_what_is_no_sum_is_refused():
    largest = metrics.Metric(
        lambda: jnp.float32(-jnp.inf),
        lambda a, x, y, mask=None: jnp.maximum(a, x.max()),
        lambda a: a,
    )
    for wrap in (metrics.windowed, metrics.decayed):
        assert "start at zero" in str(
            refused(lambda wrap=wrap: wrap(largest, 3), errors.OptionError)
        )


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: metrics.windowed(first, 0), errors.OptionError, "window"),
        (lambda: metrics.windowed(metrics.accuracy, 3), errors.OptionError, "call the builder"),
        (lambda: metrics.decayed(first, 0.0), errors.OptionError, "half_life"),
        (lambda: metrics.decayed(first, None), errors.OptionError, "half_life"),
        (lambda: metrics.windowed(first, 2).compute(first.init()), errors.InputError, "windowed"),
        (lambda: metrics.decayed(first, 2).compute(None), errors.InputError, "decayed"),
        (
            lambda: metrics.over_time(first, jnp.ones((3, 2)), jnp.ones((2, 2))),
            errors.ShapeError,
            "over_time",
        ),
    ],
)
def test_wrong_inputs_are_refused(call, kind, text):
    assert text in str(refused(call, kind))
