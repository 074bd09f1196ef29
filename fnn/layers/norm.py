"""Layers that normalize."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn import checks, errors
from fnn.dtypes import wide
from fnn.initializers import ones, zeros
from fnn.initializing import Param
from fnn.layer import Layer, leaf


@errors.builder
def batch_norm(
    *, momentum=0.9, eps=1e-5, axis_name=None, use_scale: bool = True, use_bias: bool = True
) -> Layer:
    """Normalize each channel over the batch, y = scale (x - mean) / sqrt(var + eps) + bias.

    In training mean and var are the batch's own, over all axes but the last, and the running ones
    in the state follow: running = momentum running + (1 - momentum) batch. In evaluation they are
    the running ones. [..., C] -> [..., C] (Ioffe & Szegedy, 2015).

    - `momentum`: the weight of the old running statistics, in [0, 1].
    - `eps`: added to the variance; 1e-5 as in the field.
    - `axis_name`: the name of a mapped axis (or a tuple of them), as of `jax.vmap(axis_name=)` or
      `shard_map`, over which the batch is also spread.
    - `use_scale`, `use_bias`: False leaves the parameter out.

    Statistics are computed and kept in float32 or wider. A second pass, around the mean, gives the
    (biased) variance and corrects the mean: both are right where the mean is large against the
    deviation (Chan, Golub & LeVeque, 1983). An empty batch leaves the statistics unchanged.

    Params: `scale`, `bias` [C], of x's dtype. State: `mean`, `var` [C].

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.batch_norm()
    >>> params, state = net.init(jax.random.key(0), (1, 3))
    >>> x = 1000 + 0.1 * jax.random.normal(jax.random.key(1), (64, 3))
    >>> y, state = net.apply(params, state, x, train=True)
    >>> print(jnp.abs(y.mean(0)).max() < 1e-3, state["mean"].round())
    True [100. 100. 100.]
    """
    checks.number("momentum", momentum, 0.0, 1.0)
    checks.number("eps", eps, 0.0, float("inf"))

    def specs(x):
        checks.array(x, 1, "[..., C]")
        shape, statistic = x.shape[-1:], wide(x.dtype)
        params = {}
        if use_scale:
            params["scale"] = Param(shape, ones, x.dtype, "scale", ("in",))
        if use_bias:
            params["bias"] = Param(shape, zeros, x.dtype, "bias", ("in",))
        mean = Param(shape, zeros, statistic, "statistic", ("in",))
        var = Param(shape, ones, statistic, "statistic", ("in",))
        return params, {"mean": mean, "var": var}

    def apply(params, state, x, *, key, train):
        mean, var = state["mean"], state["var"]
        values = x.astype(mean.dtype)
        if train and 0 not in x.shape:
            mean, var = _moments(values, axis_name)
            weight = jnp.asarray(momentum, mean.dtype)
            state = {
                "mean": weight * state["mean"] + (1 - weight) * mean,
                "var": weight * state["var"] + (1 - weight) * var,
            }
        scale = jax.lax.rsqrt(var + jnp.asarray(eps, var.dtype))
        if use_scale:
            scale = scale * params["scale"].astype(scale.dtype)
        y = (values - mean) * scale
        if use_bias:
            y = y + params["bias"].astype(y.dtype)
        return y.astype(x.dtype), state

    return leaf("batch_norm", specs, apply)


def _moments(x: jax.Array, axis_name) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last, and over the mapped axis."""

    def average(values):
        local = jnp.mean(values, axis=tuple(range(x.ndim - 1)))
        return local if axis_name is None else jax.lax.pmean(local, axis_name)

    mean = average(x)
    centred = x - mean
    error = average(centred)  # what rounding left in the mean, a few ulp where it is large
    var = average(jnp.square(centred)) - jnp.square(error)
    return mean + error, jnp.where(var < 0, 0, var)  # by rounding, of a constant channel
