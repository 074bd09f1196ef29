"""Scaling by a plain factor."""

from __future__ import annotations

import math

from fnn.core import checks
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.optim.arithmetic import as_dtype
from fnn.optim.transform import Transform, stateless


@builder
def scale(factor: Scalar) -> Transform:
    """updates = factor * updates, with no turn of the sign; see `scale_by_learning_rate`.

    - `factor`: a number, an array or a tracer.

    >>> import jax.numpy as jnp
    >>> tx = scale(0.5)
    >>> print(tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0])
    [0.5 0.5]
    """
    checks.number("factor", factor, -math.inf, math.inf)
    return stateless(lambda p, g: as_dtype(factor, g.dtype) * g)
