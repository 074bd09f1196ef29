"""A table of all metrics, each with its oracle and a draw of its inputs."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import sklearn.metrics as sklearn
from hypothesis import strategies as st

import fnn
from fnn import errors, metrics
from tests.losses import oracles_batch
from tests.metrics import oracles

SEEDS = st.integers(0, 2**32 - 1)


N, C = 24, 4


class Row(NamedTuple):
    metric: metrics.Metric
    kind: str  # of inputs, see `draw`
    oracle: object


def losses(outputs, labels):
    return fnn.losses.softmax_cross_entropy(outputs, labels)


cross_entropy, cm = oracles_batch.softmax_cross_entropy, sklearn.confusion_matrix


THEN = np.random.default_rng(0).normal(size=50).astype("float32")  # what `drift` compares with
THEN_BINNED = metrics.histogram(THEN, 4)


def drifted(statistic):
    edges = oracles.edges(THEN, 4)
    then = oracles.counts(edges, THEN)
    return lambda outputs, labels: statistic(then, oracles.counts(edges, outputs))


TABLE = {
    "accuracy": Row(metrics.accuracy(), "classes", functools.partial(oracles.top_k, 1)),
    "top_k": Row(metrics.top_k(3), "classes", functools.partial(oracles.top_k, 3)),
    "binary_accuracy": Row(
        metrics.binary_accuracy(), "binary", lambda z, y: sklearn.accuracy_score(y, z > 0)
    ),
    "mean": Row(metrics.mean(losses), "classes", lambda x, y: np.mean(cross_entropy(x, y))),
    "perplexity": Row(
        metrics.perplexity(), "classes", lambda x, y: np.exp(np.mean(cross_entropy(x, y)))
    ),
    "confusion_matrix": Row(
        metrics.confusion_matrix(C), "classes", lambda x, y: cm(y, x.argmax(-1), labels=range(C))
    ),
    "roc_auc": Row(metrics.roc_auc(6), "scores", oracles.roc_auc),
    "average_precision": Row(metrics.average_precision(6), "scores", oracles.average_precision),
    "calibration_error": Row(
        metrics.calibration_error(5), "classes", functools.partial(oracles.calibration_error, 5)
    ),
    "mean_squared_error": Row(
        metrics.mean_squared_error(), "numbers", lambda x, y: sklearn.mean_squared_error(y, x)
    ),
    "r2": Row(metrics.r2(-2.5), "numbers", oracles.r2),
    "drift_psi": Row(metrics.drift(THEN_BINNED), "numbers", drifted(oracles.psi)),
    "drift_ks": Row(metrics.drift(THEN_BINNED, "ks"), "numbers", drifted(oracles.binned_ks)),
    # So many updates and so slow a decay that nothing is forgotten, as contracts of sums say.
    "windowed": Row(
        metrics.windowed(metrics.accuracy(), 16), "classes", functools.partial(oracles.top_k, 1)
    ),
    "decayed": Row(
        metrics.decayed(metrics.mean_squared_error(), 1e12),
        "numbers",
        lambda x, y: sklearn.mean_squared_error(y, x),
    ),
}


AVERAGED = {}


for name in ("precision", "recall", "f1"):
    builder, score = getattr(metrics, name), getattr(sklearn, f"{name}_score")
    for average in ("macro", "micro", None):
        oracle = functools.partial(oracles.of_classes, score, average, C)
        AVERAGED[name, average] = Row(builder(C, average=average), "classes", oracle)
    AVERAGED[name, "binary"] = Row(builder(), "binary", functools.partial(oracles.binary, score))


for key in (("precision", None), ("recall", "micro"), ("f1", "macro"), ("f1", "binary")):
    TABLE[f"{key[0]}_{key[1]}"] = AVERAGED[key]


def draw(kind, rng, n=N):
    """Outputs and labels; some classes do not occur, and binary logits of 0 do."""
    if kind == "classes":
        among = rng.choice(C, size=rng.integers(1, C + 1))
        return rng.normal(size=(n, C)).astype("float32") * 2, rng.choice(among, n).astype("int32")
    if kind == "numbers":
        return tuple(rng.normal(size=(2, n)).astype("float32"))
    outputs = rng.integers(-2, 3, n) if kind == "binary" else rng.integers(0, 11, n) / 10
    return outputs.astype("float32"), rng.integers(0, 2, n).astype("int32")


def draw_all(seed):
    rng = np.random.default_rng(seed)
    return {kind: draw(kind, rng) for kind in ("classes", "binary", "scores", "numbers")}


def update_all(accumulators, data, mask=None):
    return {
        name: row.metric.update(accumulators[name], *data[row.kind], mask)
        for name, row in TABLE.items()
    }


def compute_all(accumulators):
    return {name: row.metric.compute(accumulators[name]) for name, row in TABLE.items()}


def values_of(data, mask=None, weights=None):
    return {name: row.metric.value(*data[row.kind], mask, weights) for name, row in TABLE.items()}


jit_update, jit_compute, jit_values = map(jax.jit, (update_all, compute_all, values_of))


def at_once(metric, *args):
    return jax.jit(metric.value)(*args)


def assert_close(got, want, rtol=2e-6, name=""):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol, err_msg=name)


def assert_teaches(error, name, kind=errors.FnnError):
    assert isinstance(error, kind), error
    assert error.expected and error.got and error.mend and len(str(error)) < 400
    assert str(error) == f"{name}: expected {error.expected}, got {error.got}; {error.mend}"
