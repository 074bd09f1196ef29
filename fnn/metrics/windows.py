"""Metrics of a stream: of its last updates, of all with older ones fading, and over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import is_floating
from fnn.core.origins import builder
from fnn.core.types import Scalar, Tree
from fnn.metrics.metric import Metric, Sum, add, as_metric, total, updated
from fnn.metrics.metric import metric as checked


@builder
def windowed(metric: Metric | Callable, window: int) -> Metric:
    """The metric of the last `window` updates alone: what was seen before is forgotten.

    - `metric`: a Metric, or a function `(outputs, labels)` of values per example, for their mean.
    - `window`: how many updates, usually batches; one whose examples are all masked counts, too.

    The accumulator holds one of the metric for each update, the newest last, and they are added
    when the value is computed: a NaN or an infinity leaves with its update, and nothing drifts. It
    is `window` times as large, and so `decayed` is cheaper for long windows. Accumulators of parts
    that are updated side by side, as on several devices, add up as those of any metric.

    Raises OptionError for a window below 1, and for accumulators that do not start at zero, which
    no sums do.

    >>> import fnn
    >>> recent = windowed(fnn.metrics.mean(lambda outputs, labels: outputs), 2)
    >>> accumulator = recent.init()
    >>> for x in (jnp.nan, 1.0, 3.0):
    ...     accumulator = recent.update(accumulator, jnp.array([x]), jnp.array([0]))
    >>> print(recent.compute(accumulator))
    2.0
    """
    metric, window = as_metric("metric", metric), checks.count("window", window)
    _check_sums(metric.init())

    def init():
        return jax.tree.map(lambda a: jnp.zeros((window, *a.shape), a.dtype), metric.init())

    def update(accumulator, *batch):
        newest = updated(metric, metric.init(), *batch)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[1:], b[None]]), accumulator, newest)

    def compute(accumulator):
        return metric.compute(_over_parts(_summed, accumulator))

    return checked("windowed", init, update, compute)


@builder
def decayed(metric: Metric | Callable, half_life: Scalar) -> Metric:
    """The metric with an update of t updates ago weighted by 2**(-t / half_life).

    - `metric`: as in `windowed`; its accumulators, which are sums, shrink at each update.
    - `half_life`: the number of updates, above 0, after which one counts half. A mean over
      1 / (1 - 2**(-1 / half_life)), about 1.44 half_life, updates: the weights' sum.

    It needs no more memory than the metric. What was not finite stays so: mask it out, or use
    `windowed`. Raises OptionError for a half-life of 0 or less, for accumulators that do not start
    at zero, and for whole numbers among them, which cannot fade.

    >>> import fnn
    >>> recent = decayed(fnn.metrics.mean(lambda outputs, labels: outputs), half_life=1)
    >>> accumulator = recent.init()
    >>> for x in (0.0, 3.0):
    ...     accumulator = recent.update(accumulator, jnp.array([x]), jnp.array([0]))
    >>> print(recent.compute(accumulator).round(4))  # 3 / (1 + 1 / 2)
    2.0
    """
    metric = as_metric("metric", metric)
    checks.positive("half_life", half_life)
    _check_sums(metric.init(), fading=True)

    def update(accumulator, *batch):
        lost = -jnp.expm1(-jnp.log(2.0) / jnp.asarray(half_life, jnp.result_type(float)))

        def faded(part):  # as add does, lest a long half-life be rounded away
            if not isinstance(part, Sum):
                return part * (1 - lost.astype(part.dtype))
            whole = total(part)
            return add(part, jnp.where(jnp.isfinite(whole), -lost * whole, 0))

        return updated(metric, _over_parts(faded, accumulator), *batch)

    return checked("decayed", metric.init, update, metric.compute)


@errors.named
def over_time(
    metric: Metric | Callable,
    outputs: Tree,
    labels: Tree,
    mask: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> Any:
    """The metric's value after each of T batches: [T, B, ...] -> [T, ...], by one scan.

    - `metric`: as in `windowed`; usually a `windowed` or a `decayed` one, since that of a plain
      metric is the value of all batches so far.
    - `outputs`, `labels`, `mask`, `weights`: as in `Metric`, with batches along the first axis.

    Raises ShapeError for first axes that differ, and what the metric's `update` raises.

    >>> import fnn
    >>> outputs = jnp.array([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]])
    >>> print(over_time(windowed(lambda outputs, labels: outputs, 2), outputs, outputs))
    [1. 2. 4.]
    """
    metric = as_metric("metric", metric)
    batches = (outputs, labels, mask, weights)
    checks.examples("batches", batches)

    def body(accumulator, batch):
        accumulator = updated(metric, accumulator, *batch)
        return accumulator, metric.compute(accumulator)

    return jax.lax.scan(body, metric.init(), batches)[1]


def _over_parts(fn: Callable, accumulator: Any) -> Any:
    """fn of each `Sum`, and of each array outside one."""
    return jax.tree.map(fn, accumulator, is_leaf=lambda a: isinstance(a, Sum))


def _summed(part: Any) -> Any:
    """The sum over the first axis; of a `Sum` by pairs, so that it rounds once."""
    if not isinstance(part, Sum):
        return part.sum(0, dtype=part.dtype)
    while (n := part.high.shape[0]) > 1:
        first, second, rest = (
            jax.tree.map(lambda a, at=at: a[at], part)
            for at in (slice(n // 2), slice(n // 2, n // 2 * 2), slice(n // 2 * 2, n))
        )
        pairs = add(add(first, second.high), second.low)
        part = jax.tree.map(lambda *parts: jnp.concatenate(parts), pairs, rest)
    return Sum(part.high[0], part.low[0])


def _check_sums(start: Any, fading: bool = False) -> None:
    mend = "pass a metric whose accumulators are sums, as fnn.metrics.Metric says"
    for path, a in jax.tree_util.tree_leaves_with_path(start):
        whose = f"{errors.path_of(path)} {errors.show(a)}".strip()
        if not isinstance(a, jax.core.Tracer) and not bool((jnp.asarray(a) == 0).all()):
            wanted = "accumulators that start at zero"
            raise errors.OptionError(wanted, f"{whose} that do not", mend)
        if fading and not is_floating(jnp.asarray(a)):
            raise errors.OptionError("accumulators of floats, which can fade", whose, mend)
