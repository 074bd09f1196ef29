"""Which examples of a batch count, and how much: by a mask, weights, lengths or classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from fnn.core import errors
from fnn.core.types import Tree
from fnn.losses.inputs import array, integers
from fnn.losses.masking import bools, class_weights, length_mask, reals

FromBatch: TypeAlias = str | Callable[[Tree], Any] | None  # an entry's name, or a function


def counting(
    mask: FromBatch, weights: FromBatch, lengths: FromBatch, classes: Any
) -> Callable[[Any, Any], tuple]:
    """A function of (batch, labels) that returns (mask, weights), None for what is not given.

    Examples of weight 0 are masked too.
    """
    for name, of in (("mask", mask), ("weights", weights), ("lengths", lengths)):
        if not (of is None or isinstance(of, str) or callable(of)):
            raise errors.OptionError(
                f"{name} to be a name, or a function of the batch",
                errors.show(of),
                f"pass its name in the batch, as {name}={name!r}",
            )

    def counted(batch: Tree, labels: Any) -> tuple[jax.Array | None, jax.Array | None]:
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
    """Two arrays joined; the one with fewer axes has the first axes of the other."""
    if a is None or b is None:
        return b if a is None else a
    rank = max(a.ndim, b.ndim)
    a, b = (jnp.expand_dims(x, tuple(range(x.ndim, rank))) for x in (a, b))
    if any(m != n and 1 not in (m, n) for m, n in zip(a.shape, b.shape, strict=True)):
        raise errors.ShapeError(
            "masks, weights and lengths for the same examples",
            f"{a.shape} and {b.shape}",
            "make the batch the first axis of each",
        )
    return join(a, b)


def losses_of(loss: Callable, outputs: Any, labels: Any, keep: jax.Array | None) -> jax.Array:
    """The losses of a batch; a loss that takes a mask gets it, so masked NaN do not matter."""
    if keep is not None and _takes_mask(loss):
        return loss(outputs, labels, mask=keep)
    return loss(outputs, labels)


def _of(batch: Tree, of: FromBatch, what: str) -> jax.Array:
    if callable(of):
        return array(what, of(batch))
    if not (isinstance(batch, Mapping) and of in batch):
        raise errors.InputError(
            f"a batch that is a dict with {of}, its {what}",
            errors.show(batch),
            f"pass an entry's name, or a function of the batch, as {what}=",
        )
    return array(what, batch[of])


def _there(lengths: Any, labels: Any) -> jax.Array:
    lengths = integers("lengths", lengths)
    shape: Any = getattr(labels, "shape", ())
    if len(shape) <= lengths.ndim or shape[: lengths.ndim] != lengths.shape:
        raise errors.ShapeError(
            f"labels {(*lengths.shape, 'T')} for lengths {lengths.shape}",
            f"labels {errors.show(labels)}",
            "lengths have the axes of the labels before the time axis",
        )
    return length_mask(lengths, shape[lengths.ndim])


def _takes_mask(loss: Callable) -> bool:
    try:
        return "mask" in inspect.signature(loss).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return False
