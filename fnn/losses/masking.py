"""Masks and weights: which losses count, and how much."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.core import errors
from fnn.core.dtypes import wide
from fnn.core.types import Dtype, Shape
from fnn.losses.inputs import array, choose, floating, integers, numbered


def check_mask(mask: jax.Array | None, shape: Shape) -> jax.Array | None:
    """A mask of bools for values of `shape`, in that shape, or None.

    Masks and weights follow one rule: they have the shape of the values, or of its first axes, so
    that [B] masks whole rows of [B, T]. Nothing else is broadcast.
    """
    if mask is None:
        return None
    return _over(bools(mask), shape, "mask")


def check_weights(weights: jax.Array | None, shape: Shape, dtype: Dtype) -> jax.Array | None:
    """Weights of real numbers for values of `shape`, in that shape and a dtype, or None."""
    if weights is None:
        return None
    return _over(reals(weights).astype(dtype), shape, "weights")


def bools(mask: jax.Array) -> jax.Array:
    mask = array("mask", mask)
    if mask.dtype != bool:
        raise errors.DtypeError(
            "mask of bools",
            f"mask {errors.show(mask)}",
            "pass mask != 0; numbers that weight the losses are weights",
        )
    return mask


def reals(weights: jax.Array) -> jax.Array:
    weights = array("weights", weights)
    if not any(jnp.issubdtype(weights.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise errors.DtypeError(
            "weights of real numbers", f"weights {errors.show(weights)}", "bools are a mask"
        )
    return weights


def _over(a: jax.Array, shape: Shape, name: str) -> jax.Array:
    if a.shape != shape[: a.ndim]:
        raise errors.ShapeError(
            f"{name} of the shape of the values {shape}, or of its first axes",
            f"{name} {a.shape}",
            "give one entry for each value, or for each row of them",
        )
    axes = tuple(range(a.ndim, len(shape)))
    return jnp.broadcast_to(jnp.expand_dims(a, axes), shape)


def length_mask(lengths: jax.Array, size: int) -> jax.Array:
    """Which of `size` steps lie within the lengths: [...] lengths -> [..., size] bools.

    >>> print(length_mask(jnp.array([1, 3]), 3))
    [[ True False False]
     [ True  True  True]]
    """
    lengths = integers("lengths", lengths)
    return numbered(size, lengths) < lengths[..., None]


@errors.named
def class_weights(weights: jax.Array, labels: jax.Array) -> jax.Array:
    """The weight of each label's class, to weight losses in `mean`: [C] and [...] -> [...].

    - `weights`: of the classes, floating.
    - `labels`: integers; one outside 0 ... C - 1 has weight NaN.

    Raises ShapeError for weights that are not [C], DtypeError for other dtypes.

    >>> print(class_weights(jnp.array([1.0, 5.0]), jnp.array([0, 1, 0])))
    [1. 5. 1.]
    """
    weights, labels = floating("weights", weights, 1), integers("labels", labels)
    if weights.ndim != 1:
        raise errors.ShapeError(
            "weights [C], one per class", f"weights {weights.shape}", "give one per class"
        )
    every = jnp.broadcast_to(weights, (*labels.shape, weights.shape[0]))
    return choose(every, labels)


def clear(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """x with zeros where masked: a NaN there reaches neither the loss nor the gradient."""
    if mask is None:
        return x
    axes = tuple(range(mask.ndim, x.ndim))  # those of one example
    return jnp.where(jnp.expand_dims(mask, axes), x, jnp.zeros_like(x))


def masked(losses: jax.Array, mask: jax.Array | None) -> jax.Array:
    return losses if mask is None else jnp.where(mask, losses, jnp.zeros_like(losses))


@errors.named
def masked_mean(losses: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of the losses that count, sum of m_i l_i / sum of m_i: [...] and [...] -> [].

    - `mask`: True where a loss counts, of the losses' shape or its first axes. The rest is
      ignored, NaN included. With an empty mask the mean is 0, and so is its gradient.

    Computed and returned in float32 or wider. A scalar does not carry its weight: where a batch
    is split into parts, as by `fnn.optim.accumulate`, return `mean(losses, mask)` instead.
    Raises ShapeError for another shape, DtypeError for a mask of other than bools.

    >>> print(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])))
    2.0
    """
    losses = floating("losses", losses)
    if (keep := check_mask(mask, losses.shape)) is None:
        raise errors.InputError("a mask", "None", "jnp.mean is the mean of all")
    losses = clear(losses.astype(wide(losses.dtype)), keep)
    return jnp.sum(losses) / jnp.sum(keep).astype(losses.dtype).clip(1)
