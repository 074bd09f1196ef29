"""Metrics of classifiers. Outputs are logits, [..., C] or, where there are two classes, [...]."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import is_floating
from fnn.core.origins import builder
from fnn.losses import check_labels
from fnn.losses.inputs import numbered
from fnn.metrics.metric import (
    Metric,
    add,
    averaged,
    kept,
    metric,
    no_sum,
    pair,
    tally,
    total,
)


@builder
def accuracy() -> Metric:
    """The fraction of examples whose largest logit is the label's: [..., C] and [...] -> [].

    The first of equal logits counts as the largest; a row with NaN counts as wrong. Where labels
    are [..., C] probabilities, the likeliest class is the label. A label outside 0 ... C - 1 makes
    the value NaN, since under `jit` it cannot raise: labels such as -1 are left out by a mask. For
    one logit per example there is `binary_accuracy`. Nothing accumulated gives NaN.

    Raises ShapeError or DtypeError if logits and labels do not fit.

    >>> print(accuracy().value(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])))
    0.5
    """
    return averaged("accuracy", lambda outputs, labels: hits(outputs, labels, 1, "accuracy"))


@builder
def top_k(k: int) -> Metric:
    """The fraction of examples whose label is among the k largest logits: [..., C], [...] -> [].

    - `k`: how many guesses each example gets; 1 is `accuracy`, whose conventions apply.

    Raises OptionError for k below 1, ShapeError for fewer than k logits.

    >>> logits = jnp.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    >>> print(top_k(2).value(logits, jnp.array([1, 2])))
    0.5
    """
    k = checks.count("k", k)
    return averaged("top_k", lambda outputs, labels: hits(outputs, labels, k, "top_k"))


@builder
def binary_accuracy() -> Metric:
    """The fraction of examples whose logit is on the label's side of zero: [...], [...] -> [].

    Class 1 is predicted by a logit above 0, as sigmoid(logit) > 1/2, class 0 by one of 0 or below;
    NaN counts as wrong. Labels are 0 and 1, of any dtype; another label makes the value NaN.

    Raises ShapeError or DtypeError if logits and labels do not fit.

    >>> print(binary_accuracy().value(jnp.array([2.0, -1.0, 0.5]), jnp.array([1, 0, 0])))
    0.6666667
    """

    def right(outputs, labels):
        predicted, labels = decisions(outputs, labels, None, "binary_accuracy")
        return jnp.where(labels == 2, jnp.nan, (predicted == labels).astype(jnp.float32))

    return averaged("binary_accuracy", right)


@builder
def precision(classes: int | None = None, *, average: str | None = "macro") -> Metric:
    """Of the examples given a class, the fraction that belong to it: TP / (TP + FP).

    - `classes`: how many, for logits [..., classes], of which the first largest is the prediction.
      None is the binary form: one logit per example, [...], labels 0 and 1, and the value is that
      of class 1, predicted above 0.
    - `average`: "macro", the mean over the classes that occur (among labels or predictions);
      "micro", the value of the pooled counts of all classes; None, [classes] values. The binary
      form has one class, and nothing to average.

    A class that was never predicted has precision 0, as in scikit-learn; one that does not occur at
    all is NaN. A row with NaN predicts no class. A label outside 0 ... classes - 1 makes the value
    NaN.

    Raises OptionError for fewer than 2 classes, ShapeError or DtypeError if the inputs do not fit.

    >>> logits, labels = jnp.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1, 1])
    >>> print(precision(2, average=None).value(logits, labels))
    [0.5 1. ]
    """
    return _by_class("precision", classes, average, lambda predicted, labelled: predicted)


@builder
def recall(classes: int | None = None, *, average: str | None = "macro") -> Metric:
    """Of the examples of a class, the fraction that were given it: TP / (TP + FN).

    - `classes`, `average`: as in `precision`. The macro mean is also called balanced accuracy.

    A class that was predicted but is no example's has recall 0. Otherwise as `precision`.

    >>> logits, labels = jnp.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1, 1])
    >>> print(recall(2, average=None).value(logits, labels))
    [1.  0.5]
    """
    return _by_class("recall", classes, average, lambda predicted, labelled: labelled)


@builder
def f1(classes: int | None = None, *, average: str | None = "macro") -> Metric:
    """The harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN).

    - `classes`, `average`: as in `precision`. "macro" is the mean of the classes' values, as in
      scikit-learn, and not the harmonic mean of the means.

    Otherwise as `precision`.

    >>> print(f1().value(jnp.array([2.0, 1.0, -1.0]), jnp.array([1, 0, 1])))
    0.5
    """
    return _by_class("f1", classes, average, lambda predicted, labelled: (predicted + labelled) / 2)


@builder
def confusion_matrix(classes: int | None = None) -> Metric:
    """How many examples of class i were given class j, at [i, j]: [classes, classes].

    - `classes`: as in `precision`; the binary form, None, gives [2, 2].

    The counts are floats: whole numbers, exact below 2**24 and rounded to 24 bits above, or sums of
    weights. An example without a cell, whose label is outside 0 ... classes - 1 or whose logits
    hold NaN, makes all of them NaN. Nothing accumulated gives zeros. Raises as `precision`.

    >>> print(confusion_matrix().value(jnp.array([2.0, -1.0, 0.5]), jnp.array([1, 0, 0])))
    [[1. 1.]
     [0. 1.]]
    """
    _check_classes(classes)
    n = classes or 2

    def init():
        return {"cells": no_sum((n + 1, n + 1))}

    def update(accumulator, outputs, labels, mask, weights):
        predicted, labels = decisions(outputs, labels, classes, "confusion_matrix")
        keep, w = kept(mask, weights, labels.shape)
        counted = tally(labels * (n + 1) + predicted, keep, w, (n + 1) ** 2)
        return {"cells": add(accumulator["cells"], counted.reshape(n + 1, n + 1))}

    def compute(accumulator):
        cells = total(accumulator["cells"])
        outside = cells[n].sum() + cells[:, n].sum()
        return jnp.where(outside > 0, jnp.nan, cells[:n, :n])

    return metric("confusion_matrix", init, update, compute)


def _classes_of(outputs: jax.Array, labels: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
    """Logits [..., C] and labels int32 [...]: 0 ... C - 1, or C for any other label."""
    logits, labels = check_labels(outputs, labels, name)
    classes = logits.shape[-1]
    if classes == 0:
        raise errors.ShapeError("logits of a class or more", f"{logits.shape}", "pass logits")
    if is_floating(labels):
        likeliest = jnp.argmax(labels, axis=-1)
        labels = jnp.where(jnp.isnan(labels).any(-1), -1, likeliest)
    inside = (labels >= 0) & (labels < classes)
    return logits, jnp.where(inside, labels, classes).astype(jnp.int32)


def hits(outputs: jax.Array, labels: jax.Array, k: int, name: str) -> jax.Array:
    """1 where the label is among the k largest logits, else 0; NaN for a label out of range."""
    logits, labels = _classes_of(outputs, labels, name)
    classes = logits.shape[-1]
    if classes < k:
        raise errors.ShapeError(
            f"logits of {k} classes or more", f"{logits.shape}", "lower k, or give more logits"
        )
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="clip")
    before = numbered(classes, labels) < labels[..., None]  # of equals, the first leads
    ahead = (logits > chosen) | (logits == chosen) & before
    hit = (ahead.sum(-1, dtype=jnp.int32) < k) & ~jnp.isnan(logits).any(-1)
    return jnp.where(labels == classes, jnp.nan, hit.astype(jnp.float32))


def decisions(
    outputs: jax.Array, labels: jax.Array, classes: int | None, name: str
) -> tuple[jax.Array, jax.Array]:
    """Predicted classes and labels, int32 [...]: 0 ... C - 1, or C for any other."""
    if classes is None:
        outputs, labels = pair(outputs, labels, "labels")
        labels = labels.astype(jnp.int32) if labels.dtype == bool else labels
        known = (labels == 0) | (labels == 1)
        predicted = jnp.where(jnp.isnan(outputs), 2, (outputs > 0).astype(jnp.int32))
        return predicted, jnp.where(known, labels.astype(jnp.int32), 2)
    logits, labels = _classes_of(outputs, labels, name)
    if logits.shape[-1] != classes:
        raise errors.ShapeError(
            f"logits [..., {classes}] of {classes} classes",
            f"{logits.shape}",
            f"build it for them, as {name}({logits.shape[-1]})",
        )
    predicted = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.isnan(logits).any(-1), classes, predicted), labels


def _check_classes(classes: int | None) -> None:
    if classes is not None:
        checks.count("classes", classes, least=2)


def _by_class(name: str, classes: int | None, average: str | None, denominator: Callable) -> Metric:
    """TP / denominator(TP + FP, TP + FN), by class or averaged."""
    _check_classes(classes)
    if average is not None:
        checks.choice("average", average, ("macro", "micro"))
    n, shown = classes or 2, slice(classes)
    if classes is None:  # the binary form reports class 1 alone
        shown, average = slice(1, 2), "micro"

    def init():
        return {part: no_sum((n + 1,)) for part in ("hits", "predicted", "labelled")}

    def update(accumulator, outputs, labels, mask, weights):
        predicted, labels = decisions(outputs, labels, classes, name)
        keep, w = kept(mask, weights, labels.shape)
        counted = {
            "hits": tally(labels, keep & (predicted == labels), w, n + 1),
            "predicted": tally(predicted, keep, w, n + 1),
            "labelled": tally(labels, keep, w, n + 1),
        }
        return {part: add(accumulator[part], counted[part]) for part in counted}

    def compute(accumulator):
        counts = (total(accumulator[part]) for part in ("hits", "predicted", "labelled"))
        hits, predicted, labelled = counts
        bad = labelled[n] > 0
        hits, predicted, labelled = hits[shown], predicted[shown], labelled[shown]
        if average == "micro":
            hits, predicted, labelled = hits.sum(), predicted.sum(), labelled.sum()
        occurs = predicted + labelled > 0
        below = denominator(predicted, labelled)
        value = jnp.where(below > 0, hits / jnp.where(below > 0, below, 1), 0)
        if average == "macro":
            value = jnp.where(occurs, value, 0).sum() / occurs.sum(dtype=value.dtype)
        else:
            value = jnp.where(occurs, value, jnp.nan)
        return jnp.where(bad, jnp.nan, value)

    return metric(name, init, update, compute)
