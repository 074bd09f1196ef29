"""Layers that only move values."""

from __future__ import annotations

import math

from fnn import checks, errors
from fnn.layer import Layer, leaf


@errors.builder
def flatten(n: int) -> Layer:
    """Join the last `n` axes in row-major order: [..., H, W, C] -> [..., H * W * C] for n = 3.

    `n` is asked for because the number of leading axes is open: one example and a batch of them
    both keep theirs. Raises ShapeError for an input with fewer than `n` axes.

    >>> import jax.numpy as jnp, fnn
    >>> fnn.flatten(3)({}, jnp.ones((2, 4, 4, 3))).shape
    (2, 48)
    """
    n = checks.count("n", n)

    def specs(x):
        checks.rank(x, n, f"with the {n} axes to be joined")
        return {}, {}

    def apply(params, state, x, *, key, train):
        lead, joined = x.shape[: x.ndim - n], x.shape[x.ndim - n :]
        return x.reshape(*lead, math.prod(joined)), state

    return leaf("flatten", specs, apply)
