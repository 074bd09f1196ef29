"""Metrics of classifiers: ties, NaN, labels outside, and averages over classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import metrics
from tests.metrics import oracles as metrics_oracles
from tests.metrics.support import (
    AVERAGED,
    SEEDS,
    TABLE,
    C,
    N,
    assert_close,
    at_once,
    draw_all,
    jit_values,
)
from tests.support import asarray


@given(seed=SEEDS)
def test_averages_over_classes_are_scikit_learns(seed):
    data = draw_all(seed)
    values = jit_averaged(data)
    for name, (_, kind, oracle) in AVERAGED.items():
        outputs, labels = data[kind]
        assert_close(values["_".join(map(str, name))], oracle(outputs, labels), 5e-6, str(name))


@jax.jit
def jit_averaged(data):
    rows = {"_".join(map(str, name)): row for name, row in AVERAGED.items()}
    return {name: row.metric.value(*data[row.kind]) for name, row in rows.items()}


def test_accuracy_of_ties_nan_and_probabilities():
    nan = np.nan
    logits = jnp.float32([[1, 1], [1, 1], [nan, 1], [1, nan], [-np.inf, -np.inf], [np.inf, 1]])
    each = jax.jit(jax.vmap(metrics.accuracy().value))
    assert each(logits, asarray([0, 1, 1, 0, 0, 0])).tolist() == [1, 0, 0, 0, 1, 1]
    soft = jnp.float32([[0.4, 0.6], [0.5, 0.5], [nan, 1]])
    np.testing.assert_array_equal(each(jnp.float32([[0, 1]] * 3), soft), [1, 0, nan])


@pytest.mark.parametrize("bad", [-1, C, 2**31 - 1, -(2**31)])
def test_a_label_outside_is_nan(bad):
    data = draw_all(0)
    for kind in ("classes", "binary", "scores"):
        data[kind][1][3] = bad
    for name, value in jit_values(data, np.ones(N, bool)).items():
        assert np.isnan(value).all() or TABLE[name].kind == "numbers", name


@given(lead=st.sampled_from([(), (0,), (3,), (2, 3)]), classes=st.sampled_from([1, 4]), seed=SEEDS)
def test_accuracy_takes_any_leading_axes_and_the_first_of_ties(lead, classes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 2, (*lead, classes)).astype("float32")
    labels = rng.integers(0, classes, lead).astype("int32")
    right = metrics_oracles.accuracy(logits, labels)
    want = right.mean() if right.size else np.nan
    assert_close(at_once(metrics.accuracy(), logits, labels), want)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.uint32])
def test_labels_of_any_integer_dtype(dtype):
    """The number of classes need not fit the labels' dtype."""
    logits = np.random.default_rng(0).normal(size=(4, 257)).astype("float32")
    labels = np.array([0, 1, 99, logits[3, :100].argmax()])
    logits[3, labels[3]] += 9
    labels = asarray(labels, dtype)
    assert at_once(metrics.accuracy(), logits, labels) == 0.25
    assert at_once(metrics.f1(257, average="micro"), logits, labels) == 0.25


@pytest.mark.parametrize("dtype", [bool, jnp.uint8, jnp.bfloat16])
def test_binary_labels_of_any_dtype(dtype):
    logits, labels = jnp.float32([2, -1, 0.5, 3]), asarray([1, 0, 0, 1]).astype(dtype)
    assert at_once(metrics.binary_accuracy(), logits, labels) == 0.75
    assert at_once(metrics.roc_auc(), logits, labels) == 1


def test_a_class_without_examples_or_predictions():
    """Class 0 is right once, 1 never predicted, 2 never a label, 3 neither."""
    logits, labels = jnp.eye(4)[asarray([0, 2, 2])], asarray([0, 1, 0])
    nothing = jnp.float32([-1, -1, -1]), asarray([0, 0, 0])

    def measure():
        for build in (metrics.precision, metrics.recall, metrics.f1):
            each, macro = build(4, average=None), build(4)
            yield each.value(logits, labels), macro.value(logits, labels), build().value(*nothing)

    values = jax.jit(lambda: list(measure()))()
    wanted = [1, 0, 0, np.nan], [0.5, 0, 0, np.nan], [2 / 3, 0, 0, np.nan]
    for (each, macro, none), want in zip(values, wanted, strict=True):
        assert_close(each, want)
        assert_close(macro, np.nanmean(want))
        assert np.isnan(none)


def test_rows_with_nan_predict_no_class():
    logits, labels = jnp.float32([[np.nan, 0], [0, 1]]), asarray([0, 1])

    @jax.jit
    def values(logits, labels):
        each = [
            m(2, average=None).value(logits, labels) for m in (metrics.recall, metrics.precision)
        ]
        micro = metrics.f1(2, average="micro").value(logits, labels)
        of_two = [
            m().value(logits[:, 0], labels) for m in (metrics.binary_accuracy, metrics.roc_auc)
        ]
        cells = metrics.confusion_matrix(2).value(logits, labels)
        return each, micro, of_two, cells, metrics.calibration_error().value(logits, labels)

    each, micro, of_two, cells, calibration = values(logits, labels)
    assert_close(each, [[0, 1], [0, 1]])
    assert_close(micro, 2 / 3)
    np.testing.assert_array_equal(of_two, [0, np.nan])
    assert np.isnan(cells).all() and np.isnan(calibration)
