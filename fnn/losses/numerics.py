"""Sums of logarithms that stay finite, in value and gradient, where the mathematics does."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def normalize(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x, log sum exp x), x the logits less their largest: [..., C] -> ([..., C], [...]).

    The largest goes before the logarithm, so the difference of the two is exact near it.
    """
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf))
    x = logits - jnp.where(jnp.isfinite(largest), largest, 0)
    return x, jnp.log(jnp.sum(jnp.exp(x), axis=-1))


def log_softmax(logits: jax.Array) -> jax.Array:
    x, log_total = normalize(logits)
    return x - log_total[..., None]


def log_sum_exp(x: jax.Array) -> jax.Array:
    """Over the last axis; minus infinity, with gradient 0, where all terms are."""
    largest = jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True, initial=-jnp.inf))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    total = jnp.sum(jnp.exp(x - largest), axis=-1)
    none = total == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, total)) + largest[..., 0])


def times(p: jax.Array, x: jax.Array) -> jax.Array:
    """p x, where 0 times infinity is 0: a log-probability that carries no weight."""
    return p * jnp.where((p == 0) & jnp.isinf(x), 0, x)


def magnitude(x: jax.Array) -> jax.Array:
    """|x|, with gradient 0 at 0, where that of jnp.abs is 1."""
    return x * jnp.sign(x)


def kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Sum over the last axis of p (log p - log q), with 0 log 0 = 0."""
    p = jnp.exp(log_p)
    none = p == 0
    log_p, log_q = jnp.where(none, 0, log_p), jnp.where(none, 0, log_q)
    return jnp.sum(p * (log_p - log_q), axis=-1)
