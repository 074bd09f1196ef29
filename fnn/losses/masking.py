"""Masks: which losses count."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fnn import errors
from fnn.dtypes import wide
from fnn.losses.inputs import array, floating


def check_mask(mask: Any, shape: tuple) -> jax.Array | None:
    """A mask of bools, one for each loss of `shape`, or None."""
    return None if mask is None else _bools(mask, shape)


def _bools(mask: Any, shape: tuple) -> jax.Array:
    mask = array("mask", mask)
    if mask.dtype != bool:
        raise errors.DtypeError(
            "mask of bools", f"mask {errors.show(mask)}", "say which count, as mask != 0"
        )
    if mask.shape != shape:
        raise errors.ShapeError(
            f"mask {shape}, one bool per loss",
            f"mask {mask.shape}",
            "nothing is broadcast: repeat it, as jnp.broadcast_to(mask[..., None], shape)",
        )
    return mask


def clear(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """x with zeros where masked: a NaN there reaches neither the loss nor the gradient."""
    if mask is None:
        return x
    axes = tuple(range(mask.ndim, x.ndim))  # those of one example
    return jnp.where(jnp.expand_dims(mask, axes), x, jnp.zeros_like(x))


def masked(losses: jax.Array, mask: jax.Array | None) -> jax.Array:
    return losses if mask is None else jnp.where(mask, losses, jnp.zeros_like(losses))


def masked_mean(losses: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of the losses that count, sum of m_i l_i / sum of m_i: [...] and [...] -> [].

    - `mask`: True where a loss counts, of the losses' shape. What it leaves out is not looked at,
      NaN included. With an empty mask the mean is 0, and so is its gradient.

    Computed and returned in float32 or wider.
    Raises ShapeError for another shape, DtypeError for a mask that is not of bools.

    >>> print(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])))
    2.0
    """
    with errors.within("masked_mean"):
        losses = floating("losses", losses)
        mask = _bools(mask, losses.shape)
    losses = clear(losses.astype(wide(losses.dtype)), mask)
    return jnp.sum(losses) / jnp.sum(mask).astype(losses.dtype).clip(1)
