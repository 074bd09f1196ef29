"""Losses: per example and unreduced; average them, or weigh them by a mask, yourself."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn import checks, errors
from fnn.dtypes import wide

__all__ = ["softmax_cross_entropy"]


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of softmax(logits) against labels, -sum over c of p_c log softmax(logits)_c.

    [..., C] logits and [...] integer labels, or [..., C] probabilities p of floating dtype, give
    [...] losses in nats, computed and returned in float32 or wider. Logits of minus infinity are
    impossible classes: loss and gradient stay finite as long as their p is zero. An integer label
    outside 0 ... C - 1 gives NaN, since under `jit` it cannot raise.

    Raises ShapeError if the shapes do not fit, DtypeError for integer logits.

    >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
    >>> print(softmax_cross_entropy(logits, jnp.array([0, 1])).round(3))
    [0.127 0.693]
    """
    logits, labels = check_labels(logits, labels, "softmax_cross_entropy")
    logits = logits.astype(wide(logits.dtype))
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf))
    logits = logits - jnp.where(jnp.isfinite(largest), largest, 0)  # exact near the largest
    log_total = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    if jnp.issubdtype(labels.dtype, jnp.integer):
        classes = logits.shape[-1]
        labels = jnp.where((labels < 0) | (labels >= classes), classes, labels.astype(jnp.int32))
        chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="fill")
        return log_total - chosen[..., 0]
    labels = labels.astype(logits.dtype)
    log_p = jnp.where(labels == 0, 0, logits - log_total[..., None])  # 0 log 0 = 0
    return -jnp.sum(labels * log_p, axis=-1)


def check_labels(logits: jax.Array, labels: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
    """Logits [..., C] with labels that fit: integers [...] or probabilities [..., C]."""
    with errors.within(name):
        for value in (logits, labels):
            if not (hasattr(value, "shape") and hasattr(value, "dtype")):
                errors.not_an_array(value)
        logits, labels = jnp.asarray(logits), jnp.asarray(labels)
        checks.array(logits, 1, "[..., C]", "logits")
        whole = jnp.issubdtype(labels.dtype, jnp.integer)
        if not whole and not jnp.issubdtype(labels.dtype, jnp.floating):
            raise errors.DtypeError(
                "labels of integers, or of floating probabilities",
                f"labels {errors.show(labels)}",
                "cast them: labels.astype(jnp.int32)",
            )
        wanted = logits.shape[:-1] if whole else logits.shape
        if labels.shape != wanted:
            raise errors.ShapeError(
                f"{'integer' if whole else 'floating'} labels {wanted} for logits {logits.shape}",
                f"labels {errors.show(labels)}",
                "give one integer label per row of logits, or one probability per logit",
            )
    if whole and jnp.iinfo(labels.dtype).bits < 32:
        labels = labels.astype(jnp.int32)  # where the number of classes may not fit
    return logits, labels
