"""Checks of what losses take: arrays of one shape, labels that fit, options in range."""

from __future__ import annotations

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import is_floating, wide, widest
from fnn.core.shapes import from_numpy
from fnn.core.types import Shape

LAYOUTS = ("[...]", "[..., C]", "[..., N, C]")  # by the axes of one example


def array(name: str, x: Any) -> jax.Array:
    """x as a jax array; numbers, lists and trees are refused."""
    x = from_numpy(x, name)
    if not isinstance(x, jax.Array):
        raise errors.InputError(
            f"{name} to be an array", f"{name} {errors.show(x)}", "pass one array, by jnp.asarray"
        )
    return x


def floating(name: str, x: Any, axes: int = 0) -> jax.Array:
    """An array of floating dtype that has the `axes` of one example."""
    x = array(name, x)
    checks.array(x, axes, LAYOUTS[axes], name)
    return x


def same_shape(axes: int = 0, **arrays: jax.Array) -> list[jax.Array]:
    """Floating arrays of one shape, cast to the widest of their dtypes, float32 or wider."""
    found = {name: floating(name, x, axes) for name, x in arrays.items()}
    first, *others = found
    for name in others:
        check_shape(name, found[name], found[first].shape, first)
    return same_dtype(*found.values())


def same_dtype(*arrays: jax.Array) -> list[jax.Array]:
    dtype = wide(reduce(widest, (x.dtype for x in arrays)))
    return [x.astype(dtype) for x in arrays]


def check_shape(name: str, x: jax.Array, shape: Shape, other: str) -> None:
    if x.shape != shape:
        raise errors.ShapeError(
            f"{name} {shape} for these {other}",
            f"{name} {x.shape}",
            "reshape one of them: nothing is broadcast",
        )


def integers(name: str, x: Any) -> jax.Array:
    """An array of integers, widened to int32: -1 and 300 must keep their meaning."""
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise errors.DtypeError(
            f"{name} of integers", f"{name} {errors.show(x)}", f"cast: {name}.astype(jnp.int32)"
        )
    return x.astype(jnp.int32) if jnp.iinfo(x.dtype).bits < 32 else x


def binary(scores: str, x: jax.Array, labels: jax.Array, soft: bool = True) -> list[jax.Array]:
    """Scores [...] and labels 0 or 1 [...], of one dtype; NaN for any other integer.

    Labels may be bools, integers or, where `soft`, probabilities.
    """
    x, labels = floating(scores, x), array("labels", labels)
    probabilities = is_floating(labels)
    whole = jnp.issubdtype(labels.dtype, jnp.integer) or labels.dtype == bool
    if not (whole or soft and probabilities):
        raise errors.DtypeError(
            f"labels of bools or integers{', or of floating probabilities' if soft else ''}",
            f"labels {errors.show(labels)}",
            "cast them: labels.astype(jnp.int32)",
        )
    check_shape("labels", labels, x.shape, scores)
    if whole:
        labels = labels.astype(jnp.int32) if labels.dtype == bool else labels
        labels = jnp.where((labels == 0) | (labels == 1), labels.astype(jnp.float32), jnp.nan)
    return same_dtype(x, labels)


def check_labels(logits: jax.Array, labels: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
    """Logits [..., C] with labels that fit: integers [...] or probabilities [..., C].

    Integers come back in 32 bits or more.
    """
    with errors.within(name):
        return class_labels("logits", logits, labels)


def class_labels(
    scores: str, x: jax.Array, labels: jax.Array, soft: bool = True
) -> tuple[jax.Array, jax.Array]:
    x, labels = floating(scores, x, 1), array("labels", labels)
    whole = jnp.issubdtype(labels.dtype, jnp.integer)
    if not (whole or soft and is_floating(labels)):
        raise errors.DtypeError(
            f"labels of integers{', or of floating probabilities' if soft else ''}",
            f"labels {errors.show(labels)}",
            "cast them: labels.astype(jnp.int32)",
        )
    wanted = x.shape[:-1] if whole else x.shape
    if labels.shape != wanted:
        mend = f"give one integer label per row of {scores}"
        raise errors.ShapeError(
            f"{'integer' if whole else 'floating'} labels {wanted} for {scores} {x.shape}",
            f"labels {errors.show(labels)}",
            f"{mend}, or one probability per class" if soft else mend,
        )
    return x, integers("labels", labels) if whole else labels


def choose(values: jax.Array, labels: jax.Array) -> jax.Array:
    """The value at each label, NaN where there is none: [..., C] and [...] -> [...]."""
    classes = values.shape[-1]
    inside = (labels >= 0) & (labels < classes)
    labels = jnp.where(inside, labels.astype(jnp.int32), classes)  # -1 would mean the last
    return jnp.take_along_axis(values, labels[..., None], axis=-1, mode="fill")[..., 0]


def numbered(n: int, x: jax.Array) -> jax.Array:
    """0 ... n - 1 on a last axis, to be compared with x[..., None]."""
    return jnp.expand_dims(jnp.arange(n, dtype=x.dtype), tuple(range(x.ndim)))
