"""Metrics of a function of the outputs, and of every member of an ensemble."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.metrics.metric import Metric, as_metric


@builder
def after(fn: Callable[[Any], Any], metric: Metric | Callable) -> Metric:
    """The metric of `fn(outputs)`, for outputs that the metric does not take directly.

    - `fn`: such as `fnn.ensembles.mean_logits`, for the metric of an ensemble's prediction.
    - `metric`: a Metric, or a function `(outputs, labels)` of values per example, for their mean.

    >>> import fnn
    >>> of_all = after(fnn.ensembles.mean_logits, fnn.metrics.accuracy())
    >>> logits = jnp.array([[[2.0, 0.0]], [[0.0, 3.0]], [[0.0, 3.0]]])  # [n, B, C]
    >>> print(of_all.value(logits, jnp.array([1])))
    1.0
    """
    checks.function("fn", fn, "the outputs")
    metric = as_metric("metric", metric)

    def update(accumulator, outputs, labels, mask=None, weights=None):
        return metric.update(accumulator, fn(outputs), labels, mask, weights)

    return Metric(metric.init, update, metric.compute)


@builder
def each(metric: Metric | Callable, n: int) -> Metric:
    """The metric of every member of an ensemble: outputs [n, ...], one value for each member.

    - `metric`: as in `after`; all members are compared with the same labels.
    - `n`: how many members there are.

    >>> import fnn
    >>> accuracies = each(fnn.metrics.accuracy(), 2)
    >>> print(accuracies.value(jnp.array([[[2.0, 0.0]], [[0.0, 3.0]]]), jnp.array([1])))
    [0. 1.]
    """
    metric, n = as_metric("metric", metric), checks.count("n", n)

    def init():
        return jax.tree.map(lambda a: jnp.stack([a] * n), metric.init())

    def update(accumulator, outputs, labels, mask=None, weights=None):
        with errors.within("each"):
            if checks.examples("outputs of an ensemble", outputs) != n:
                raise errors.ShapeError(
                    f"outputs [{n}, ...] of {n} members", errors.show(outputs), "stack them"
                )
        member = jax.vmap(lambda own, y: metric.update(own, y, labels, mask, weights))
        return member(accumulator, outputs)

    return Metric(init, update, jax.vmap(metric.compute))
