"""Sums of logarithms that stay finite, in value and gradient, where the mathematics does."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fnn.core.static import inlined
from fnn.core.types import Scalar


@inlined
def normalize(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x, log sum exp x), x the logits minus their largest: [..., C] -> ([..., C], [...]).

    The largest is subtracted before the logarithm, so the difference of the two is exact near it.
    """
    x = logits - _largest(logits)
    return x, jnp.log(jnp.sum(jnp.exp(x), axis=-1))


def _largest(x: jax.Array) -> jax.Array:
    """Over the last axis, [..., 1], a constant to derivatives; 0 where it is not finite."""
    largest = jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True, initial=-jnp.inf))
    return jnp.where(jnp.isfinite(largest), largest, 0)


@inlined
def log_softmax(logits: jax.Array) -> jax.Array:
    x, log_total = normalize(logits)
    return x - log_total[..., None]


@inlined
def log_sum_exp(x: jax.Array) -> jax.Array:
    """Over the last axis; minus infinity, with gradient 0, where all terms are."""
    largest = _largest(x)
    total = jnp.sum(jnp.exp(x - largest), axis=-1)
    none = total == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, total)) + largest[..., 0])


@inlined
def times(p: jax.Array, x: jax.Array) -> jax.Array:
    """p x, where 0 times infinity is 0: a log-probability that carries no weight."""
    return p * jnp.where((p == 0) & jnp.isinf(x), 0, x)


@inlined
def magnitude(x: jax.Array) -> jax.Array:
    """|x|, with gradient 0 at 0, where that of jnp.abs is 1."""
    return x * jnp.sign(x)


@inlined
def excess(d: jax.Array) -> jax.Array:
    """exp(d) - 1 - d, at least 0; near 0, where the difference cancels, by its series."""
    near = jnp.abs(d) < 0.5
    s = jnp.where(near, d, 0)
    series = jnp.ones_like(s)
    for n in range(15, 2, -1):  # within a rounding of float64
        series = 1 + s / n * series
    far = jnp.where(near, 1, d)
    return jnp.where(near, s * s / 2 * series, jnp.expm1(far) - jnp.where(far == jnp.inf, 0, far))


@inlined
def kl(p_logits: jax.Array, q_logits: jax.Array, temperature: Scalar = 1) -> jax.Array:
    """Divergence of q from p, of the logits over a temperature: [..., C] -> [...].

    The sum of p (exp(d) - 1 - d), d = log q - log p, whose terms are never negative. It equals that
    of p (log p - log q), since q - p sums to 0, but nothing cancels where q is close to p.
    """
    p, q, d = _ratio(p_logits, q_logits, temperature)
    none = p == 0
    d = jnp.where(none, 0, d)
    near = jnp.abs(d) < 0.5
    terms = jnp.where(near, p * excess(jnp.where(near, d, 0)), q - p - p * jnp.where(near, 1, d))
    return jnp.sum(jnp.where(none, q, terms), axis=-1)


@inlined
def jensen_shannon(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """The mean divergence of m = (p + q) / 2 from p and from q: [..., C] -> [...].

    The sum of m ((1 + t) log(1 + t) + (1 - t) log(1 - t)) / 2, t = (q - p) / (q + p), whose
    terms are never negative; t = tanh(d / 2), d = log q - log p.
    """
    p, q, d = _ratio(p_logits, q_logits)
    m = (p + q) / 2
    alone = (p == 0) | (q == 0)
    d = jnp.where(alone, 0, d)
    a = magnitude(d)
    near = a < 1
    t = jnp.tanh(jnp.where(near, d, 0) / 2)
    far = jnp.where(near, 1, a)
    apart = 2 * (math.log(2) - jax.nn.softplus(-far) - far * jax.nn.sigmoid(-far))
    terms = jnp.where(near, t * jnp.where(near, d, 0) + jnp.log1p(-t * t), apart)
    return jnp.sum(m * jnp.where(alone, math.log(2), terms / 2), axis=-1)


def _ratio(p_logits: jax.Array, q_logits: jax.Array, temperature: Scalar = 1) -> tuple:
    """(p, q, log q - log p), [..., C] each; the last is minus infinity where q alone is impossible.

    For close logits the difference is exact. The normalizers' rounding is the same for all classes,
    and changes a divergence in second order only.
    """
    (x, top_p), (y, top_q) = ((x - _largest(x), _largest(x)) for x in (p_logits, q_logits))
    impossible = jnp.isinf(p_logits) | jnp.isinf(q_logits)
    p_raw, q_raw, x_safe, y_safe = (jnp.where(impossible, 0, a) for a in (p_logits, q_logits, x, y))
    raw, moved = q_raw - p_raw, top_q - top_p
    closer = jnp.maximum(jnp.abs(raw), jnp.abs(moved)) <= jnp.maximum(-x_safe, -y_safe)
    apart = jnp.where(closer, raw - moved, y_safe - x_safe)
    x, y = x / temperature, y / temperature
    log_x, log_y = (jnp.log(jnp.sum(jnp.exp(a), axis=-1, keepdims=True)) for a in (x, y))
    none = jnp.where(jnp.isneginf(q_logits) & ~jnp.isneginf(p_logits), -jnp.inf, 0)
    d = jnp.where(impossible, none, apart / temperature - (log_y - log_x))
    return jnp.exp(x - log_x), jnp.exp(y - log_y), d
