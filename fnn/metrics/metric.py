"""What a metric is: an accumulator that starts at zero, takes batches in any order, and adds up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn import checks, errors
from fnn.dtypes import is_floating
from fnn.losses.inputs import array, check_shape, floating

Array = jax.Array
Sum = tuple[Array, Array]  # (high, low), floats; the sum is high + low
Count = tuple[Array, Array]  # (high, low), int32; the count is high * 2**16 + low


class Metric(NamedTuple):
    """A value measured over any number of batches, as three pure functions.

        init()                                          -> accumulator, a tree of arrays, all zero
        update(accumulator, outputs, labels, mask=None) -> accumulator
        compute(accumulator)                            -> value

    Accumulators are sums: how the examples are cut into batches, and in which order they come,
    does not matter; and accumulators of parts add up to that of the whole, with
    `jax.tree.map(jnp.add, a, b)`, `jax.lax.psum` or a sum over a `vmap`ped axis. `update` is a
    step of `jax.lax.scan`.

    - `mask`: bool, or integers 0 and 1; examples at False do not count, whatever they hold. Its
      axes are those of the labels [...] or the first few of them: [B] masks whole rows of [B, T].

    `value(outputs, labels, mask=None)` is all three, for one batch.

    Counts are exact up to 2**46. Sums are kept in two floats (float32, or float64 in x64 mode), so
    that a million updates round no worse than one; adding two accumulators rounds once. Values are
    float32, or float64 in x64 mode.

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

    def value(self, outputs: Any, labels: Any, mask: Any = None) -> Any:
        """The value of one batch alone."""
        return self.compute(self.update(self.init(), outputs, labels, mask))


@errors.builder
def mean(fn: Callable[[Any, Any], Any]) -> Metric:
    """The mean of `fn(outputs, labels)`, one value or several per example: [B, ...] -> [].

    - `fn`: per example, as a loss: reals [...], of which those that the mask leaves are averaged.
      Outputs and labels are whatever it takes.

    Nothing accumulated gives NaN. Raises OptionError if `fn` is no such function, DtypeError if
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
        return {"total": no_sum(), "count": no_count()}

    def update(accumulator, outputs, labels, mask):
        x = array("values", values(outputs, labels))
        if not is_real(x):
            raise errors.DtypeError(
                "values of real numbers", f"values {errors.show(x)}", "return one per example"
            )
        keep = kept(mask, x.shape)
        x = jnp.where(keep, x.astype(jnp.result_type(float)), 0)
        return {
            "total": add(accumulator["total"], x.sum()),
            "count": add_count(accumulator["count"], keep.sum(dtype=jnp.int32)),
        }

    def compute(accumulator):
        return finish(total(accumulator["total"]) / number(accumulator["count"]))

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


def _called(value: Any) -> str:
    if errors.is_builder(value):
        return f"{value.__name__}, which builds one when called"
    return errors.show(value)


# --- what metrics are made of


def metric(name: str, init: Callable, update: Callable, compute: Callable) -> Metric:
    """The three functions, with `name` in the mistakes, and accumulators held against `init`."""

    def check(accumulator):
        want, treedef = jax.tree.flatten(jax.eval_shape(init))
        have, same = jax.tree.flatten(accumulator)
        fits = treedef == same and all(
            getattr(a, "shape", None) == b.shape and getattr(a, "dtype", None) == b.dtype
            for a, b in zip(have, want, strict=True)
        )
        if not fits:
            raise errors.InputError(
                "an accumulator of this metric",
                errors.show(accumulator),
                "start with init() and hand on what update returns; stacked ones go through "
                "jax.vmap, or are summed over the stack",
            )

    def checked_update(accumulator, outputs, labels, mask=None):
        with errors.within(name):
            check(accumulator)
            return update(accumulator, outputs, labels, mask)

    def checked_compute(accumulator):
        with errors.within(name):
            check(accumulator)
            return compute(accumulator)

    return Metric(init, checked_update, checked_compute)


def is_whole(x: Array) -> bool:
    """Whether an array holds integers or bools."""
    return jnp.issubdtype(x.dtype, jnp.integer) or jnp.issubdtype(x.dtype, jnp.bool_)


def is_real(x: Array) -> bool:
    return is_whole(x) or is_floating(x)


def kept(mask: Any, shape: tuple[int, ...]) -> Array:
    """Which of `shape` values count, bool."""
    if mask is None:
        return jnp.ones(shape, bool)
    mask = array("mask", mask)
    if not is_whole(mask):
        raise errors.DtypeError(
            "mask of bools, or of integers 0 and 1",
            f"mask {errors.show(mask)}",
            "cast it: mask.astype(bool); weights are not masks",
        )
    if mask.shape != shape[: mask.ndim]:
        raise errors.ShapeError(
            f"mask of the shape of the values {shape}, one or more per example, or its first axes",
            f"mask {mask.shape}",
            "give one mask entry per example, and leave the mean over examples to the metric",
        )
    axes = tuple(range(mask.ndim, len(shape)))
    return jnp.broadcast_to(jnp.expand_dims(mask.astype(bool), axes), shape)


def no_sum(shape: tuple[int, ...] = ()) -> Sum:
    dtype = jnp.result_type(float)
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)


def add(sums: Sum, x: Array) -> Sum:
    """(high, low) + x, normalized; in float32 it loses about 2**-47 of what was added in all.

    Knuth's two-sum tells what high + x rounds away, and low keeps it (Dekker, A floating-point
    technique for extending the available precision, 1971).
    """
    high, low = sums
    x = x.astype(high.dtype)
    rough = high + x
    back = rough - high
    low = low + ((high - (rough - back)) + (x - back))
    fine = rough + low
    finite = jnp.isfinite(rough)  # what an infinity rounds away is NaN
    return jnp.where(finite, fine, rough), jnp.where(finite, low - (fine - rough), 0)


def total(sums: Sum) -> Array:
    return sums[0] + sums[1]


def no_count(shape: tuple[int, ...] = ()) -> Count:
    return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32)


def add_count(counts: Count, n: Array) -> Count:
    """(high, low) + n, with low below 2**16, so that 2**15 accumulators can be added at once.

    One int32 would overflow at 2**31, which is a thousand large images, counted by the pixel.
    """
    low = counts[1] + n
    return counts[0] + (low >> 16), low & 0xFFFF


def number(counts: Count) -> Array:
    """The counts as floats, in float32 exact below 2**24 and rounded above."""
    high, low = (part.astype(jnp.result_type(float)) for part in counts)
    return high * 2**16 + low


def tally(index: Array, keep: Array, length: int) -> Array:
    """How often each of 0 ... length - 1 is in `index`, where kept: int32 [length]."""
    return jnp.zeros(length, jnp.int32).at[index.ravel()].add(keep.ravel().astype(jnp.int32))


def pair(outputs: Any, labels: Any, what: str) -> tuple[Array, Array]:
    """Arrays of one shape, the outputs floating and the labels real."""
    outputs, labels = floating("outputs", outputs), array(what, labels)
    if not is_real(labels):
        raise errors.DtypeError(
            f"{what} of real numbers", f"{what} {errors.show(labels)}", "cast them"
        )
    check_shape(what, labels, outputs.shape, "outputs")
    return outputs, labels
