"""Divergences between distributions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.core import errors
from fnn.losses import numerics
from fnn.losses.inputs import same_shape
from fnn.losses.masking import check_mask, clear, masked


@errors.named
def kl_divergence(
    p_logits: jax.Array, q_logits: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Kullback-Leibler divergence of q from p, sum of p (log p - log q): [..., C] -> [...].

    - `p_logits`, `q_logits`: the distributions as logits, p = softmax(p_logits), floating and of
      one shape. Log-probabilities are logits too: they are their own log-softmax.
    - `mask`: [...], False where the loss and its gradient are 0, whatever the inputs hold.

    In nats, never negative, computed and returned in float32 or wider; accurate to several digits
    even where the distributions are almost equal. Logits of minus infinity are impossible classes:
    they add nothing where p is 0, and infinity where q alone is.
    Raises ShapeError if the shapes differ, DtypeError for integers. Kullback & Leibler (1951).

    >>> p, q = jnp.log(jnp.array([0.5, 0.5, 0.0])), jnp.log(jnp.array([0.5, 0.25, 0.25]))
    >>> print(kl_divergence(p, q).round(3), kl_divergence(q, p))
    0.347 inf
    """
    p_logits, q_logits = same_shape(1, p_logits=p_logits, q_logits=q_logits)
    mask = check_mask(mask, p_logits.shape[:-1])
    return masked(numerics.kl(clear(p_logits, mask), clear(q_logits, mask)), mask)


@errors.named
def jensen_shannon(
    p_logits: jax.Array, q_logits: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Jensen-Shannon divergence, the mean divergence of m = (p + q) / 2: [..., C] -> [...].

        (KL(p || m) + KL(q || m)) / 2

    - `p_logits`, `q_logits`: the distributions as logits (or log-probabilities), floating and of
      one shape.
    - `mask`: [...], False where the loss and its gradient are 0, whatever the inputs hold.

    Symmetric, and between 0 and log 2 nats, impossible classes included; its square root is a
    distance. Computed and returned in float32 or wider.
    Raises ShapeError if the shapes differ, DtypeError for integers. Lin (1991).

    >>> p, q = jnp.log(jnp.array([1.0, 0.0])), jnp.log(jnp.array([0.0, 1.0]))
    >>> print(jensen_shannon(p, q).round(3))
    0.693
    """
    p_logits, q_logits = same_shape(1, p_logits=p_logits, q_logits=q_logits)
    mask = check_mask(mask, p_logits.shape[:-1])
    return masked(numerics.jensen_shannon(clear(p_logits, mask), clear(q_logits, mask)), mask)


@errors.named
def gaussian_kl(mean: jax.Array, log_var: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """Divergence of the standard normal from a diagonal one, as in a VAE: [..., D] -> [...].

        sum of (exp(log_var) + mean^2 - 1 - log_var) / 2

    - `mean`, `log_var`: floating, of one shape.
    - `mask`: [...], False where the loss and its gradient are 0, whatever the inputs hold.

    In nats, never negative, summed over the last axis; computed and returned in float32 or wider.
    Raises ShapeError if the shapes differ, DtypeError for integers. Kingma & Welling (2014),
    appendix B.

    >>> print(gaussian_kl(jnp.array([[0.0, 0.0], [1.0, 0.0]]), jnp.zeros((2, 2))))
    [0.  0.5]
    """
    mean, log_var = same_shape(1, mean=mean, log_var=log_var)
    mask = check_mask(mask, mean.shape[:-1])
    mean, log_var = clear(mean, mask), clear(log_var, mask)
    return masked(jnp.sum(numerics.excess(log_var) + mean * mean, axis=-1) / 2, mask)
