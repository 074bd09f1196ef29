"""Metrics: per example and unreduced, like the losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.losses import check_labels

__all__ = ["accuracy"]


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the largest logit is the label's, 1 or 0 in float32: [..., C] and [...] -> [...].

    The first of equal logits counts as the largest; a row with NaN counts as wrong. With [..., C]
    probabilities for labels, the likeliest class is the label.
    Raises ShapeError if the shapes do not fit.

    >>> print(accuracy(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])))
    [1. 0.]
    """
    logits, labels = check_labels(logits, labels, "accuracy")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        labels = jnp.argmax(labels, axis=-1)
    hit = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
    return jnp.where(jnp.isnan(logits).any(-1), False, hit).astype(jnp.float32)
