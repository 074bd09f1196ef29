"""Metrics: accumulators that start at zero, take batches in any order, and add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors, trees
from fnn.core.dtypes import is_floating
from fnn.core.origins import builder
from fnn.core.types import Shape, Tree
from fnn.losses.inputs import array, check_shape, floating
from fnn.losses.masking import check_mask, check_weights


class Sum(NamedTuple):
    """A sum high + low, of which low is what high rounds away."""

    high: jax.Array
    low: jax.Array


class Metric(NamedTuple):
    """A value measured over any number of batches, as three pure functions.

        init()                                          -> accumulator, a tree of arrays, all zero
        update(accumulator, outputs, labels, mask=None, weights=None) -> accumulator
        compute(accumulator)                            -> value

    Accumulators are sums: it does not matter how the examples are split into batches, or in which
    order they come; and accumulators of parts add up to that of the whole, with
    `jax.tree.map(jnp.add, a, b)`, `jax.lax.psum` or a sum over a `vmap`ped axis. `update` can be a
    step of `jax.lax.scan`.

    - `mask`: bools; examples at False do not count, whatever they hold. Its axes are those of the
      labels [...] or the first few of them: [B] masks whole rows of [B, T].
    - `weights`: how much each example counts, real numbers at least 0, of such shapes too; one of
      weight 0 does not count. A weight of 2 counts the example twice.

    `value(outputs, labels, mask=None, weights=None)` is all three on one batch.

    Sums and counts are kept in two floats each (float32, or float64 in x64 mode), so that a million
    updates round no worse than one, and counts without weights are exact up to 2**46; adding two
    accumulators rounds once. Values are float32, or float64 in x64 mode.

    >>> import fnn
    >>> accuracy = fnn.metrics.accuracy()
    >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]), jnp.array([0, 0, 0])
    >>> accumulator = accuracy.init()
    >>> for batch in (slice(0, 2), slice(2, 3)):
    ...     accumulator = accuracy.update(accumulator, logits[batch], labels[batch])
    >>> print(accuracy.compute(accumulator), accuracy.value(logits, labels))
    0.6666667 0.6666667
    """

    init: Callable[[], Any]
    update: Callable[..., Any]
    compute: Callable[[Any], Any]

    def value(
        self,
        outputs: Tree,
        labels: Tree,
        mask: jax.Array | None = None,
        weights: jax.Array | None = None,
    ) -> Any:
        """The value of one batch alone."""
        if weights is None:
            return self.compute(self.update(self.init(), outputs, labels, mask))
        return self.compute(self.update(self.init(), outputs, labels, mask, weights))


@builder
def mean(fn: Callable[[Any, Any], Any]) -> Metric:
    """The mean of `fn(outputs, labels)`, one value or several per example: [B, ...] -> [].

    - `fn`: per example, like a loss: real values [...], averaged where the mask is True. Outputs
      and labels are whatever it takes.

    Nothing accumulated gives NaN. Raises OptionError if `fn` is not a function, DtypeError if
    its values are not real, ShapeError if their first axes are not the mask's.

    >>> import fnn
    >>> loss = mean(fnn.losses.softmax_cross_entropy)
    >>> print(loss.value(jnp.zeros((2, 4)), jnp.array([0, 1])))  # log 4
    1.3862944
    """
    if errors.is_builder(fn) or not callable(fn):
        raise errors.OptionError(
            "a function (outputs, labels) of values per example",
            "a Metric" if isinstance(fn, Metric) else _called(fn),
            "pass one, as mean(fnn.losses.softmax_cross_entropy); a Metric needs no mean",
        )
    return averaged(f"mean({getattr(fn, '__name__', 'fn')})", fn)


def averaged(name: str, values: Callable, finish: Callable = lambda mean: mean) -> Metric:
    """The metric `finish(mean of values(outputs, labels))`."""

    def init():
        return {"total": no_sum(), "count": no_sum()}

    def update(accumulator, outputs, labels, mask, weights):
        x = array("values", values(outputs, labels))
        if not is_real(x):
            raise errors.DtypeError(
                "values of real numbers", f"values {errors.show(x)}", "return one per example"
            )
        keep, w = kept(mask, weights, x.shape)
        x = x.astype(jnp.result_type(float))
        return {
            "total": add(accumulator["total"], amount(x, keep, w)),
            "count": add(accumulator["count"], count(keep, w)),
        }

    def compute(accumulator):
        return finish(total(accumulator["total"]) / total(accumulator["count"]))

    return metric(name, init, update, compute)


def check_metrics(metrics: Any) -> dict[str, Metric]:
    """A dict of metrics and per-example functions as a dict of metrics."""
    checks.mapping("metrics", metrics)
    return {name: as_metric(f"metric {name}", value) for name, value in metrics.items()}


def as_metric(name: str, value: Any) -> Metric:
    """A metric, or the mean of a per-example function."""
    if errors.is_builder(value) or not (isinstance(value, Metric) or callable(value)):
        raise errors.OptionError(
            f"{name} to be a Metric, or a function (outputs, labels) per example",
            _called(value),
            "call the builder, as fnn.metrics.accuracy()",
        )
    return value if isinstance(value, Metric) else mean(value)


def updated(
    metric: Metric, accumulator: Tree, outputs: Any, labels: Any, mask: Any, weights: Any
) -> Tree:
    """The accumulator with a batch added; a metric that takes no weights works without any."""
    if weights is None:
        return metric.update(accumulator, outputs, labels, mask)
    return metric.update(accumulator, outputs, labels, mask, weights)


def _called(value: Any) -> str:
    if errors.is_builder(value):
        return f"{value.__name__}, which builds one when called"
    return errors.show(value)


# --- what metrics are made of


def metric(name: str, init: Callable, update: Callable, compute: Callable) -> Metric:
    """The three functions, with `name` in their errors, and accumulators checked against `init`."""

    def check(accumulator):
        arrays = all(hasattr(a, "dtype") for a in jax.tree.leaves(accumulator))
        if not (arrays and trees.is_alike(accumulator, jax.eval_shape(init))):
            raise errors.InputError(
                "an accumulator of this metric",
                errors.show(accumulator),
                "start with init() and pass on what update returns; stacked ones go through "
                "jax.vmap, or are summed over the stack",
            )

    def checked_update(accumulator, outputs, labels, mask=None, weights=None):
        with errors.within(name):
            check(accumulator)
            return update(accumulator, outputs, labels, mask, weights)

    def checked_compute(accumulator):
        with errors.within(name):
            check(accumulator)
            return compute(accumulator)

    return Metric(init, checked_update, checked_compute)


def is_whole(x: jax.Array) -> bool:
    """Whether an array holds integers or bools."""
    return jnp.issubdtype(x.dtype, jnp.integer) or jnp.issubdtype(x.dtype, jnp.bool_)


def is_real(x: jax.Array) -> bool:
    return is_whole(x) or is_floating(x)


def kept(
    mask: jax.Array | None, weights: jax.Array | None, shape: Shape
) -> tuple[jax.Array, jax.Array | None]:
    """Which of `shape` values count, bools, and how much; None weights all the same."""
    keep = check_mask(mask, shape)
    keep = jnp.ones(shape, bool) if keep is None else keep
    w = check_weights(weights, shape, jnp.result_type(float))
    return keep if w is None else keep & (w != 0), w


def amount(x: jax.Array, keep: jax.Array, w: jax.Array | None) -> jax.Array:
    """The weighted sum of the values of x that count."""
    x = jnp.where(keep, x, 0)
    return jnp.sum(x if w is None else x * jnp.where(keep, w, 0))


def count(keep: jax.Array, w: jax.Array | None) -> jax.Array:
    """How many count, int32; or the sum of their weights."""
    return keep.sum(dtype=jnp.int32) if w is None else jnp.sum(jnp.where(keep, w, 0))


def no_sum(shape: Shape = ()) -> Sum:
    dtype = jnp.result_type(float)
    return Sum(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def add(sums: Sum, x: jax.Array) -> Sum:
    """(high, low) + x, normalized; in float32 it loses about 2**-47 of what was added in all.

    Knuth's two-sum gives what high + x rounds away, and low keeps it (Dekker, A floating-point
    technique for extending the available precision, 1971).
    """
    if is_whole(x):  # in two parts, each of which a float32 holds
        part = jnp.asarray(0xFFF, x.dtype)
        dtype = sums.high.dtype
        return add(add(sums, (x & ~part).astype(dtype)), (x & part).astype(dtype))
    high, low = sums
    x = x.astype(high.dtype)
    rough = high + x
    back = rough - high
    low = low + ((high - (rough - back)) + (x - back))
    fine = rough + low
    finite = jnp.isfinite(rough)  # the rounding of an infinity is NaN
    return Sum(jnp.where(finite, fine, rough), jnp.where(finite, low - (fine - rough), 0))


def total(sums: Sum) -> jax.Array:
    return sums.high + sums.low


def tally(index: jax.Array, keep: jax.Array, w: jax.Array | None, length: int) -> jax.Array:
    """How often each of 0 ... length - 1 is in `index`, where kept: int32, or weights, [length]."""
    each = keep.astype(jnp.int32) if w is None else jnp.where(keep, w, 0)
    return jnp.zeros(length, each.dtype).at[index.ravel()].add(each.ravel())


def pair(outputs: jax.Array, labels: jax.Array, what: str) -> tuple[jax.Array, jax.Array]:
    """Arrays of one shape, the outputs floating and the labels real."""
    outputs, labels = floating("outputs", outputs), array(what, labels)
    if not is_real(labels):
        raise errors.DtypeError(
            f"{what} of real numbers", f"{what} {errors.show(labels)}", "cast them"
        )
    check_shape(what, labels, outputs.shape, "outputs")
    return outputs, labels
