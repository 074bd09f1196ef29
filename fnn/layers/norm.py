"""Layers that normalize."""

from __future__ import annotations

import math
from collections.abc import Callable

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
        mean = Param(shape, zeros, statistic, "statistic", ("in",))
        var = Param(shape, ones, statistic, "statistic", ("in",))
        return _scale_and_bias(x, use_scale, use_bias), {"mean": mean, "var": var}

    def average(values):
        """Over all axes but the last, and over the mapped axis."""
        local = jnp.mean(values, axis=tuple(range(values.ndim - 1)))
        return local if axis_name is None else jax.lax.pmean(local, axis_name)

    def apply(params, state, x, *, key, train):
        mean, var = state["mean"], state["var"]
        values = x.astype(mean.dtype)
        if train and 0 not in x.shape:
            mean, error, var = _moments(values, average)
            mean = mean + error
            weight = jnp.asarray(momentum, mean.dtype)
            state = {
                "mean": weight * state["mean"] + (1 - weight) * mean,
                "var": weight * state["var"] + (1 - weight) * var,
            }
        scale = _inverse_root(var, eps)
        if use_scale:
            scale = scale * params["scale"].astype(scale.dtype)
        y = (values - mean) * scale
        if use_bias:
            y = y + params["bias"].astype(y.dtype)
        return y.astype(x.dtype), state

    return leaf("batch_norm", specs, apply)


@errors.builder
def layer_norm(*, eps=1e-5, use_scale: bool = True, use_bias: bool = True) -> Layer:
    """Normalize the last axis, y = scale (x - mean) / sqrt(var + eps) + bias: [..., C] -> [..., C].

    Mean and (biased) variance are those of the C values at each position (Ba, Kiros & Hinton,
    2016), so that examples do not depend on each other, and training is evaluation.

    - `eps`: added to the variance; 1e-5 as in most libraries and published models (some take
      1e-6). Values that are all the same give the bias, with finite gradients.
    - `use_scale`, `use_bias`: False leaves the parameter out.

    Statistics are two-pass, in float32 or wider, as in `batch_norm`.

    Params: `scale`, `bias` [C], of x's dtype.
    Raises OptionError for a negative eps, ShapeError for another last axis.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.layer_norm()
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> print(net(params, jnp.array([1.0, 3.0, 1.0, 3.0])).round(3))
    [-1.  1. -1.  1.]
    """
    checks.number("eps", eps, 0.0, float("inf"))

    def standardize(x):
        return _standardize(x, (-1,), eps)

    return _norm("layer_norm", 0, standardize, use_scale, use_bias)


@errors.builder
def rms_norm(*, eps=1e-6, use_scale: bool = True) -> Layer:
    """Divide by the root mean square, y = scale x / sqrt(mean(x^2) + eps): [..., C] -> [..., C].

    A layer norm without its centring, over the last axis (Zhang & Sennrich, 2019).

    - `eps`: added to the mean square; 1e-6 as in most published models.
    - `use_scale`: False leaves the parameter out.

    The mean square is formed in float32 or wider. Params: `scale` [C], of x's dtype.
    Raises OptionError for a negative eps, ShapeError for another last axis.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.rms_norm()
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> print(net(params, jnp.array([0.0, 0.0, 6.0, 0.0])).round(3))
    [0. 0. 2. 0.]
    """
    checks.number("eps", eps, 0.0, float("inf"))

    def standardize(x):
        return x * _inverse_root(jnp.mean(jnp.square(x), axis=-1, keepdims=True), eps)

    return _norm("rms_norm", 0, standardize, use_scale, False)


@errors.builder
def group_norm(
    groups: int, n_spatial: int, *, eps=1e-5, use_scale: bool = True, use_bias: bool = True
) -> Layer:
    """Normalize groups of channels over space, y = scale (x - mean) / sqrt(var + eps) + bias.

    Mean and (biased) variance of an example are those of each group of C / groups neighbouring
    channels at all positions (Wu & He, 2018). [..., H, W, C] -> [..., H, W, C].

    - `groups`: how many; 1 normalizes all channels together. It divides C.
    - `n_spatial`: how many axes are spatial, 2 for images. It is asked for because the number of
      leading axes is open: guessed wrongly, it would mix examples.
    - `eps`, `use_scale`, `use_bias`: as of `layer_norm`.

    Statistics are two-pass, in float32 or wider, as in `batch_norm`.

    Params: `scale`, `bias` [C], of x's dtype.
    Raises OptionError, and ShapeError for another last axis or one that `groups` does not divide.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.group_norm(2, n_spatial=1)
    >>> params, _ = net.init(jax.random.key(0), (1, 3, 4))
    >>> y = net(params, jax.random.normal(jax.random.key(1), (5, 3, 4)))
    >>> bool(jnp.abs(y.reshape(5, 3, 2, 2).mean((1, 3))).max() < 1e-5)
    True
    """
    groups = checks.count("groups", groups)
    n_spatial = checks.count("n_spatial", n_spatial, least=0)
    checks.number("eps", eps, 0.0, float("inf"))

    def standardize(x):
        lead, spatial = x.shape[: x.ndim - n_spatial - 1], x.shape[x.ndim - n_spatial - 1 : -1]
        x_by_group = x.reshape(*lead, math.prod(spatial), groups, x.shape[-1] // groups)
        return _standardize(x_by_group, (-3, -1), eps).reshape(x.shape)

    return _norm("group_norm", n_spatial, standardize, use_scale, use_bias, groups)


@errors.builder
def instance_norm(
    n_spatial: int, *, eps=1e-5, use_scale: bool = True, use_bias: bool = True
) -> Layer:
    """Normalize each channel of each example over space: [..., H, W, C] -> [..., H, W, C].

        y = scale (x - mean) / sqrt(var + eps) + bias

    Mean and (biased) variance are those of one channel of one example (Ulyanov et al., 2016).

    - `n_spatial`: how many axes are spatial, at least 1; asked for as in `group_norm`.
    - `eps`, `use_scale`, `use_bias`: as of `layer_norm`.

    Statistics are two-pass, in float32 or wider, as in `batch_norm`.

    Params: `scale`, `bias` [C], of x's dtype.
    Raises OptionError, and ShapeError for another last axis.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.instance_norm(n_spatial=2)
    >>> params, _ = net.init(jax.random.key(0), (1, 4, 4, 3))
    >>> y = net(params, jax.random.normal(jax.random.key(1), (5, 4, 4, 3)))
    >>> bool(jnp.abs(y.mean((1, 2))).max() < 1e-5)
    True
    """
    n_spatial = checks.count("n_spatial", n_spatial)
    checks.number("eps", eps, 0.0, float("inf"))

    def standardize(x):
        return _standardize(x, tuple(range(-1 - n_spatial, -1)), eps)

    return _norm("instance_norm", n_spatial, standardize, use_scale, use_bias)


# --- what they share


def _norm(
    name: str,
    n_spatial: int,
    standardize: Callable[[jax.Array], jax.Array],
    use_scale: bool,
    use_bias: bool,
    groups: int = 1,
) -> Layer:
    """A layer without statistics of its own: standardize, then scale and shift each channel."""

    def specs(x):
        layout = f"[..., {n_spatial} spatial axes, C]" if n_spatial else "[..., C]"
        checks.array(x, n_spatial + 1, layout)
        if x.shape[-1] % groups:
            raise errors.ShapeError(
                f"last axis divisible by groups={groups}", f"x {x.shape}", "change groups or x"
            )
        return _scale_and_bias(x, use_scale, use_bias), {}

    def apply(params, state, x, *, key, train):
        y = standardize(x.astype(wide(x.dtype)))
        if use_scale:
            y = y * params["scale"].astype(y.dtype)
        if use_bias:
            y = y + params["bias"].astype(y.dtype)
        return y.astype(x.dtype), state

    return leaf(name, specs, apply)


def _scale_and_bias(x, use_scale: bool, use_bias: bool) -> dict[str, Param]:
    params, shape = {}, x.shape[-1:]
    if use_scale:
        params["scale"] = Param(shape, ones, x.dtype, "scale", ("in",))
    if use_bias:
        params["bias"] = Param(shape, zeros, x.dtype, "bias", ("in",))
    return params


def _standardize(x: jax.Array, axes: tuple[int, ...], eps) -> jax.Array:
    """x with mean 0 and variance 1 over `axes`."""
    mean, error, var = _moments(x, lambda values: jnp.mean(values, axis=axes, keepdims=True))
    return (x - mean - error) * _inverse_root(var, eps)


def _inverse_root(var: jax.Array, eps) -> jax.Array:
    return jax.lax.rsqrt(var + jnp.asarray(eps, var.dtype))


def _moments(x: jax.Array, average: Callable) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean, what rounding left in it (a few ulp where it is large), and biased variance."""
    mean = average(x)
    centred = x - mean
    error = average(centred)
    var = average(jnp.square(centred)) - jnp.square(error)
    return mean, error, jnp.where(var < 0, 0, var)  # by rounding, of constant values
