"""Masks and weights: which losses count, and how much."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import errors
from fnn.core.dtypes import wide
from fnn.losses.inputs import array, choose, floating, integers, numbered


def check_mask(mask: Any, shape: tuple) -> jax.Array | None:
    """A mask of bools for values of `shape`, in that shape, or None.

    The one rule of shapes, of weights too: the shape of what is masked, or its first axes, so that
    [B] masks whole rows of [B, T]. Nothing else is broadcast.
    """
    if mask is None:
        return None
    return _over(bools(mask), shape, "mask")


def check_weights(weights: Any, shape: tuple, dtype: Any) -> jax.Array | None:
    """Weights of real numbers for values of `shape`, in that shape and a dtype, or None."""
    if weights is None:
        return None
    return _over(reals(weights).astype(dtype), shape, "weights")


def bools(mask: Any) -> jax.Array:
    mask = array("mask", mask)
    if mask.dtype != bool:
        raise errors.DtypeError(
            "mask of bools",
            f"mask {errors.show(mask)}",
            "say which count, as mask != 0; numbers that weigh are weights",
        )
    return mask


def reals(weights: Any) -> jax.Array:
    weights = array("weights", weights)
    if not any(jnp.issubdtype(weights.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise errors.DtypeError(
            "weights of real numbers", f"weights {errors.show(weights)}", "bools are a mask"
        )
    return weights


def _over(a: jax.Array, shape: tuple, name: str) -> jax.Array:
    if a.shape != shape[: a.ndim]:
        raise errors.ShapeError(
            f"{name} of the shape of the values {shape}, or of its first axes",
            f"{name} {a.shape}",
            "give one entry for each value, or for each row of them",
        )
    axes = tuple(range(a.ndim, len(shape)))
    return jnp.broadcast_to(jnp.expand_dims(a, axes), shape)


def length_mask(lengths: Any, size: int) -> jax.Array:
    """Which of `size` times are there: [...] lengths -> [..., size] bools.

    >>> print(length_mask(jnp.array([1, 3]), 3))
    [[ True False False]
     [ True  True  True]]
    """
    lengths = integers("lengths", lengths)
    return numbered(size, lengths) < lengths[..., None]


@errors.named
def class_weights(weights: jax.Array, labels: jax.Array) -> jax.Array:
    """The weight of each label's class, what `mean` weighs losses by: [C] and [...] -> [...].

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

    - `mask`: True where a loss counts, of the losses' shape or its first axes. What it leaves out
      is not looked at, NaN included. With an empty mask the mean is 0, and so is its gradient.

    Computed and returned in float32 or wider. A scalar does not know how much it weighs: where a
    batch is cut into parts, as by `fnn.optim.accumulate`, return `mean(losses, mask)` instead.
    Raises ShapeError for another shape, DtypeError for a mask that is not of bools.

    >>> print(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])))
    2.0
    """
    losses = floating("losses", losses)
    if (keep := check_mask(mask, losses.shape)) is None:
        raise errors.InputError("a mask", "None", "jnp.mean is the mean of all")
    losses = clear(losses.astype(wide(losses.dtype)), keep)
    return jnp.sum(losses) / jnp.sum(keep).astype(losses.dtype).clip(1)
