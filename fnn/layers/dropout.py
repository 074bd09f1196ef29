"""Layers that draw noise in training."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn import checks, errors
from fnn.dtypes import wide
from fnn.layer import Layer, leaf


@errors.builder
def dropout(rate) -> Layer:
    """In training, drop each value with probability `rate`: y = m x / (1 - rate).

    The mask m is 0 or 1, 1 with probability 1 - rate, so the mean of y is x; in evaluation y = x
    (Srivastava et al., 2014). [...] -> [...].

    - `rate`: the probability of dropping, in [0, 1]; a traced number is taken as it is.

    Raises OptionError for a rate outside [0, 1], RandomKeyError for training without a key.

    >>> import jax, jax.numpy as jnp, fnn
    >>> y, _ = fnn.dropout(0.5).apply({}, {}, jnp.ones(8), key=jax.random.key(0), train=True)
    >>> print(jnp.unique(y))
    [0. 2.]
    """
    checks.number("rate", rate, 0.0, 1.0)

    def specs(x):
        checks.array(x, 0, "[...]")
        return {}, {}

    def apply(params, state, x, *, key, train):
        if not train:
            return x, state
        checks.need_key(key)
        keep = 1 - jnp.asarray(rate).astype(wide(x.dtype))
        scale = jnp.where(keep > 0, 1 / jnp.where(keep > 0, keep, 1), 0)
        mask = jax.random.bernoulli(key, keep.astype(jnp.float32), x.shape)
        scaled = (x.astype(scale.dtype) * scale).astype(x.dtype)
        return jnp.where(mask, scaled, jnp.zeros_like(x)), state

    return leaf("dropout", specs, apply)
