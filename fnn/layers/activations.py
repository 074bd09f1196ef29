"""Activations with parameters; those without are plain functions, as in `jax.nn`."""

import jax.numpy as jnp

from fnn.core import checks
from fnn.core.declarations import Param
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.core.shapes import of_rank
from fnn.initializers import constant


@builder
def prelu(init=0.25) -> Layer:
    """Rectifier with a learned slope per channel: y = x where x > 0, else alpha x.

    [..., C] -> [..., C] (He et al., 2015, equation 1).

    - `init`: the first value of all slopes, 0.25 as in the paper; 0 starts as `jax.nn.relu`.

    At 0 the slope is alpha, as in the paper. Params: `alpha` [C], of x's dtype and of kind
    "scale", so that weight decay does not push it towards 0.
    Raises OptionError for an init that is not a number, ShapeError for another last axis.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.prelu()
    >>> params, _ = net.init(jax.random.key(0), (1, 2))
    >>> print(net(params, jnp.array([-4.0, 4.0])))
    [-1.  4.]
    """
    checks.number("init", init, -float("inf"), float("inf"))

    def specs(x):
        checks.array(x, 1, "[..., C]")
        return {"alpha": Param(x.shape[-1:], constant(init), x.dtype, "scale", ("in",))}, {}

    def apply(params, state, x, *, key, train):
        negative = jnp.where(x > 0, 0, x)  # not alpha x: its gradient is NaN where x is infinite
        return jnp.where(x > 0, x, of_rank(params["alpha"], x.ndim) * negative), state

    return leaf("prelu", specs, apply)
