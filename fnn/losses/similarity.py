"""Losses of embeddings: vectors that should be near or far."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.lengths import divide
from fnn.core.types import Scalar
from fnn.losses.inputs import same_shape
from fnn.losses.masking import check_mask, clear, masked
from fnn.losses.numerics import log_softmax


@errors.named
def cosine_distance(a: jax.Array, b: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """One minus the cosine of the angle between vectors, 1 - a.b / (|a| |b|): [..., C] -> [...].

    - `a`, `b`: floating, of one shape.
    - `mask`: [...], False where the loss and its gradient are 0, whatever the inputs hold.

    Never negative. A zero vector has no direction: its distance from anything is 1, with gradient
    0. Computed and returned in float32 or wider; vectors of any finite length do not overflow.
    Raises ShapeError if the shapes differ, DtypeError for integers.

    >>> print(cosine_distance(jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.ones((2, 2))).round(3))
    [0.293 1.   ]
    """
    a, b = same_shape(1, a=a, b=b)
    mask = check_mask(mask, a.shape[:-1])
    a, b = _unit(clear(a, mask)), _unit(clear(b, mask))
    directed = jnp.any(a != 0, axis=-1) & jnp.any(b != 0, axis=-1)
    apart = jnp.where(directed[..., None], a - b, 0)  # |a - b|^2 / 2: nothing cancels near 0
    return masked(jnp.where(directed, jnp.sum(apart * apart, axis=-1) / 2, 1), mask)


@errors.named
def triplet(
    anchor: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    margin: Scalar = 0.2,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """How far the positive is from being nearer than the negative by a margin: [..., C] -> [...].

        max(0, |anchor - positive|^2 - |anchor - negative|^2 + margin)

    - `anchor`, `positive`, `negative`: floating, of one shape; of length 1 in the paper.
    - `margin`: by how much, in squared distance, at least 0; 0.2 as in the paper.
    - `mask`: [...], False where the loss and its gradient are 0, whatever the inputs hold.

    Squared distances have a gradient everywhere, even between equal vectors. Computed and returned
    in float32 or wider.
    Raises ShapeError if the shapes differ, DtypeError for integers, OptionError for a negative
    margin. Schroff, Kalenichenko & Philbin (2015), equation 3.

    >>> a, b = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    >>> print(triplet(a, a, b), triplet(a, b, a))
    0.0 2.2
    """
    checks.number("margin", margin, 0.0, math.inf)
    anchor, positive, negative = same_shape(1, anchor=anchor, positive=positive, negative=negative)
    mask = check_mask(mask, anchor.shape[:-1])
    anchor, positive, negative = (clear(x, mask) for x in (anchor, positive, negative))
    near = jnp.sum(jnp.square(anchor - positive), axis=-1)
    far = jnp.sum(jnp.square(anchor - negative), axis=-1)
    return masked(jax.nn.relu(near - far + jnp.asarray(margin, near.dtype)), mask)


@errors.named
def info_nce(
    a: jax.Array,
    b: jax.Array,
    temperature: Scalar,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of finding a_i's partner b_i among all b: [..., N, C] -> [..., N].

        -log softmax_j(cos(a_i, b_j) / temperature) at j = i

    - `a`, `b`: N pairs of vectors, floating and of one shape; their lengths do not matter.
    - `temperature`: what cosines are divided by, above 0; 0.07 to 0.5 in the literature, so there
      is no default.
    - `mask`: [..., N], False for missing pairs: their losses and gradients are 0, and they are no
      candidates.

    One direction: the symmetric loss is the mean of info_nce(a, b) and info_nce(b, a). Computed and
    returned in float32 or wider.
    Raises ShapeError if the shapes differ, DtypeError for integers, OptionError for a temperature
    that is not above 0. van den Oord, Li & Vinyals (2018), equation 4.

    >>> print(info_nce(jnp.eye(3), jnp.eye(3), 0.1).round(5))
    [9.e-05 9.e-05 9.e-05]
    """
    checks.positive("temperature", temperature)
    a, b = same_shape(2, a=a, b=b)
    mask = check_mask(mask, a.shape[:-1])
    a, b = _unit(clear(a, mask)), _unit(clear(b, mask))
    logits = jnp.einsum("...ic,...jc->...ij", a, b) / jnp.asarray(temperature, a.dtype)
    if mask is not None:
        own = jnp.broadcast_to(jnp.eye(a.shape[-2], dtype=bool), logits.shape)
        logits = jnp.where(mask[..., None, :] | own, logits, -jnp.inf)
    return masked(-jnp.diagonal(log_softmax(logits), axis1=-2, axis2=-1), mask)


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1 in the directions of x; zero, with gradient 0, where x is zero."""
    # No direction depends on this scale, so neither does a derivative; squares stay in range.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0))
    none = scale == 0
    x = divide(x, scale)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.where(none, 0, x * jax.lax.rsqrt(jnp.where(none, 1, square)))
