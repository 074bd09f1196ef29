"""Which examples of a batch count, and how much: by a mask, weights, lengths or classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import errors
from fnn.losses.inputs import array, integers
from fnn.losses.masking import bools, class_weights, length_mask, reals
from fnn.metrics.metric import Metric

FromBatch = str | Callable[[Any], Any] | None  # an entry of the batch, or a function of the batch


def counting(
    mask: FromBatch, weights: FromBatch, lengths: FromBatch, classes: Any
) -> Callable[[Any, Any], tuple]:
    """A function of (batch, labels) that gives the mask and the weights, None where there are none.

    What weighs 0 is masked too.
    """
    for name, of in (("mask", mask), ("weights", weights), ("lengths", lengths)):
        if not (of is None or isinstance(of, str) or callable(of)):
            raise errors.OptionError(
                f"{name} to be a name, or a function of the batch",
                errors.show(of),
                f"say what it is called in a batch, as {name}={name!r}",
            )

    def counted(batch: Any, labels: Any) -> tuple[jax.Array | None, jax.Array | None]:
        keep = w = None
        if mask is not None:
            keep = bools(_of(batch, mask, "mask"))
        if lengths is not None:
            keep = both(keep, _there(_of(batch, lengths, "lengths"), labels), jnp.logical_and)
        if weights is not None:
            w = reals(_of(batch, weights, "weights")).astype(jnp.float32)
        if classes is not None:
            own = class_weights(jnp.asarray(classes), labels).astype(jnp.float32)
            w = both(w, own, jnp.multiply)
        if w is not None:
            keep = both(keep, w != 0, jnp.logical_and)
        return keep, w

    return counted


def both(a: jax.Array | None, b: jax.Array | None, join: Callable) -> jax.Array | None:
    """Two arrays joined, the one with fewer axes over the first of the other's."""
    if a is None or b is None:
        return b if a is None else a
    rank = max(a.ndim, b.ndim)
    a, b = (jnp.expand_dims(x, tuple(range(x.ndim, rank))) for x in (a, b))
    if any(m != n and 1 not in (m, n) for m, n in zip(a.shape, b.shape, strict=True)):
        raise errors.ShapeError(
            "masks, weights and lengths of the same examples",
            f"{a.shape} and {b.shape}",
            "give all of them the batch as their first axis",
        )
    return join(a, b)


def losses_of(loss: Callable, outputs: Any, labels: Any, keep: jax.Array | None) -> jax.Array:
    """The losses of a batch; one that takes a mask has it, and looks at no NaN behind it."""
    if keep is not None and _takes_mask(loss):
        return loss(outputs, labels, mask=keep)
    return loss(outputs, labels)


def measure(metric: Metric, sums: Any, outputs: Any, labels: Any, keep: Any, w: Any) -> Any:
    """A metric's sums with those of a batch."""
    if w is None:
        return metric.update(sums, outputs, labels, keep)
    return metric.update(sums, outputs, labels, keep, w)


def _of(batch: Any, of: Any, what: str) -> jax.Array:
    if callable(of):
        return array(what, of(batch))
    if not (isinstance(batch, Mapping) and of in batch):
        raise errors.InputError(
            f"a batch that is a dict with {of}, its {what}",
            errors.show(batch),
            f"name an entry, or pass {what}= a function of the batch",
        )
    return array(what, batch[of])


def _there(lengths: Any, labels: Any) -> jax.Array:
    lengths = integers("lengths", lengths)
    shape: Any = getattr(labels, "shape", ())
    if len(shape) <= lengths.ndim or shape[: lengths.ndim] != lengths.shape:
        raise errors.ShapeError(
            f"labels {(*lengths.shape, 'T')} for lengths {lengths.shape}",
            f"labels {errors.show(labels)}",
            "lengths have the axes of the labels before that of time",
        )
    return length_mask(lengths, shape[lengths.ndim])


def _takes_mask(loss: Callable) -> bool:
    try:
        return "mask" in inspect.signature(loss).parameters
    except (TypeError, ValueError):  # a callable that does not tell its signature
        return False
