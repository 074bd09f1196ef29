"""Layers that normalize."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from fnn.core import checks, errors
from fnn.core.declarations import Param
from fnn.core.dtypes import wide, widened
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.core.shapes import of_rank
from fnn.core.static import inlined
from fnn.core.types import Scalar
from fnn.initializers import ones, zeros


@builder
def batch_norm(
    *, momentum: Scalar = 0.9, eps: Scalar = 1e-5, axis_name=None, use_scale=True, use_bias=True
) -> Layer:
    """Normalize each channel over the batch, y = scale (x - mean) / sqrt(var + eps) + bias.

    In training, mean and var are the batch's, over all axes but the last, and those in the state
    follow: running = momentum running + (1 - momentum) batch. In evaluation they are the running
    ones. [..., C] -> [..., C] (Ioffe & Szegedy, 2015).

    - `momentum`: the weight of the old running statistics, in [0, 1].
    - `eps`: added to the variance; 1e-5 is usual.
    - `axis_name`: the name of a mapped axis (or a tuple of them), as in `jax.vmap(axis_name=)` or
      `shard_map`, over which the batch is also spread.
    - `use_scale`, `use_bias`: False leaves the parameter out.

    Statistics are computed and kept in float32 or wider, from values shifted by the first of them;
    the (biased) variance takes a second pass, around the mean. Both are right where the mean is
    much larger than the deviation (Chan, Golub & LeVeque, 1983). An empty batch leaves them
    unchanged. A float32 deviation above 1e19 has an infinite variance, and y = 0.

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

    def everywhere(local):  # [..., 1, C] of this device's part of the batch
        return local if axis_name is None else jax.lax.pmean(local, axis_name)

    def apply(params, state, x, *, key, train):
        batch = tuple(range(x.ndim - 1))

        def average(values):  # [..., C] -> [1, ..., 1, C]
            return everywhere(jnp.mean(values, axis=batch, keepdims=True))

        mean, var = (of_rank(state[name], x.ndim) for name in ("mean", "var"))
        values = x.astype(mean.dtype)
        if train and 0 not in x.shape:
            centred, mean, var = _moments(values, everywhere(_first(values, batch)), average)
            weight = jnp.asarray(momentum, mean.dtype)
            state = {
                name: weight * state[name] + (1 - weight) * new.reshape(-1)
                for name, new in (("mean", mean), ("var", var))
            }
        else:
            centred = values - mean
        return _scaled(centred, _inverse_root(var, eps), params).astype(x.dtype), state

    return leaf("batch_norm", specs, apply)


@builder
def layer_norm(*, eps: Scalar = 1e-5, use_scale: bool = True, use_bias: bool = True) -> Layer:
    """Normalize the last axis, y = scale (x - mean) / sqrt(var + eps) + bias: [..., C] -> [..., C].

    Mean and (biased) variance are those of the C values at each position (Ba, Kiros & Hinton,
    2016), so examples do not depend on each other, and training equals evaluation.

    - `eps`: added to the variance; 1e-5 as in most libraries and published models (some use 1e-6).
      Values that are all equal give the bias, with finite gradients.
    - `use_scale`, `use_bias`: False leaves the parameter out.

    Statistics are shifted and two-pass, in float32 or wider, as in `batch_norm`.

    Params: `scale`, `bias` [C], of x's dtype.
    Raises OptionError for a negative eps, ShapeError for another last axis.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.layer_norm()
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> print(net(params, jnp.array([1.0, 3.0, 1.0, 3.0])).round(3))
    [-1.  1. -1.  1.]
    """
    checks.number("eps", eps, 0.0, float("inf"))

    return _norm("layer_norm", 0, lambda x: (_standardized(x, eps), None), use_scale, use_bias)


@builder
def rms_norm(*, eps: Scalar = 1e-6, use_scale: bool = True) -> Layer:
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

    def parts(x):
        return x, _inverse_root(jnp.mean(jnp.square(x), axis=-1, keepdims=True), eps)

    return _norm("rms_norm", 0, parts, use_scale, False)


@builder
def group_norm(
    groups: int, spatial_axes: int, *, eps: Scalar = 1e-5, use_scale=True, use_bias=True
) -> Layer:
    """Normalize groups of channels over space, y = scale (x - mean) / sqrt(var + eps) + bias.

    Mean and (biased) variance of an example are those of each group of C / groups neighbouring
    channels at all positions (Wu & He, 2018). [..., H, W, C] -> [..., H, W, C].

    - `groups`: how many; divides C. 1 normalizes all channels together.
    - `spatial_axes`: how many axes are spatial, 2 for images. It is needed because the number of
      leading axes is open: a wrong guess would mix examples.
    - `eps`, `use_scale`, `use_bias`: as in `layer_norm`.

    Statistics are shifted and two-pass, in float32 or wider, as in `batch_norm`.

    Params: `scale`, `bias` [C], of x's dtype.
    Raises OptionError, and ShapeError for another last axis or one that `groups` does not divide.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.group_norm(2, spatial_axes=1)
    >>> params, _ = net.init(jax.random.key(0), (1, 3, 4))
    >>> y = net(params, jax.random.normal(jax.random.key(1), (5, 3, 4)))
    >>> bool(jnp.abs(y.reshape(5, 3, 2, 2).mean((1, 3))).max() < 1e-5)
    True
    """
    groups = checks.count("groups", groups)
    spatial_axes = checks.count("spatial_axes", spatial_axes, least=0)
    checks.number("eps", eps, 0.0, float("inf"))

    spatial = tuple(range(-1 - spatial_axes, -1))

    def parts(x):
        size = x.shape[-1] // groups

        def to_channels(values):  # [..., groups] -> [..., C]
            return jnp.repeat(values, size, axis=-1)

        def average(values):  # over space first: channels stay the innermost, vectorized axis
            by_channel = jnp.mean(values, axis=spatial, keepdims=True)
            by_group = by_channel.reshape(*by_channel.shape[:-1], groups, size)
            return to_channels(jnp.mean(by_group, axis=-1))

        centred, _, var = _moments(x, to_channels(_first(x, spatial)[..., ::size]), average)
        return centred, _inverse_root(var, eps)

    return _norm("group_norm", spatial_axes, parts, use_scale, use_bias, groups)


@builder
def instance_norm(
    spatial_axes: int, *, eps: Scalar = 1e-5, use_scale: bool = True, use_bias: bool = True
) -> Layer:
    """Normalize each channel of each example over space: [..., H, W, C] -> [..., H, W, C].

        y = scale (x - mean) / sqrt(var + eps) + bias

    Mean and (biased) variance are those of one channel of one example (Ulyanov et al., 2016).

    - `spatial_axes`: how many axes are spatial, at least 1; needed as in `group_norm`.
    - `eps`, `use_scale`, `use_bias`: as in `layer_norm`.

    Statistics are shifted and two-pass, in float32 or wider, as in `batch_norm`.

    Params: `scale`, `bias` [C], of x's dtype.
    Raises OptionError, and ShapeError for another last axis.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.instance_norm(spatial_axes=2)
    >>> params, _ = net.init(jax.random.key(0), (1, 4, 4, 3))
    >>> y = net(params, jax.random.normal(jax.random.key(1), (5, 4, 4, 3)))
    >>> bool(jnp.abs(y.mean((1, 2))).max() < 1e-5)
    True
    """
    spatial_axes = checks.count("spatial_axes", spatial_axes)
    checks.number("eps", eps, 0.0, float("inf"))

    parts = partial(_parts, axes=tuple(range(-1 - spatial_axes, -1)), eps=eps)
    return _norm("instance_norm", spatial_axes, parts, use_scale, use_bias)


# --- what they share


def standardize(x: jax.Array, eps: Scalar = 1e-5) -> jax.Array:
    """(x - mean) / sqrt(var + eps) over the last axis, with statistics in float32 or wider."""
    return _standardized(widened(x), eps).astype(x.dtype)


@jax.custom_jvp
def _standardized(x: jax.Array, eps: Scalar) -> jax.Array:
    """y = (x - mean) r, where r = 1 / sqrt(var + eps), over the last axis.

    Its derivative is stated, u - mean(u) - y mean(y u) - y r^2 deps / 2 with u = r dx. JAX's own
    goes through the variance, in a program that takes 2.5 times as long on CPU (jaxlib 0.10; the
    row `layer_norm` of benchmarks/tasks/layers.py). r comes first, so that it comes last in the
    transposed map: where norms follow each other along a sum, as in a transformer, the compiler
    would otherwise compute the gradient of each again for all below it (`vit` of whole_networks).
    """
    centred, factor = _parts(x, (-1,), eps)
    return centred * factor


def _standardized_jvp(primals: tuple, tangents: tuple) -> tuple:
    centred, factor = _parts(primals[0], (-1,), primals[1])
    y, (dx, deps) = centred * factor, tangents
    dy = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):
        average = partial(jnp.mean, axis=-1, keepdims=True)
        scaled = factor * dx
        dy = scaled - average(scaled) - y * average(y * scaled)
    if not isinstance(deps, SymbolicZero):
        dy -= y * jnp.square(factor) * (jnp.asarray(deps, y.dtype) / 2)
    return y, dy


_standardized.defjvp(_standardized_jvp, symbolic_zeros=True)


def _norm(
    name: str,
    spatial_axes: int,
    parts: Callable[[jax.Array], tuple[jax.Array, jax.Array | None]],
    use_scale: bool,
    use_bias: bool,
    groups: int = 1,
) -> Layer:
    """A norm without state: `parts(x)` gives x centred, and the factor that scales it if any."""

    def specs(x):
        layout = f"[..., {spatial_axes} spatial axes, C]" if spatial_axes else "[..., C]"
        checks.array(x, spatial_axes + 1, layout)
        if x.shape[-1] % groups:
            raise errors.ShapeError(
                f"last axis divisible by groups={groups}", f"x {x.shape}", "change groups or x"
            )
        return _scale_and_bias(x, use_scale, use_bias), {}

    def apply(params, state, x, *, key, train):
        if 0 in x.shape:
            return x, state  # nothing to average
        return _scaled(*parts(x.astype(wide(x.dtype))), params).astype(x.dtype), state

    return leaf(name, specs, apply)


def _scale_and_bias(x, use_scale: bool, use_bias: bool) -> dict[str, Param]:
    params, shape = {}, x.shape[-1:]
    if use_scale:
        params["scale"] = Param(shape, ones, x.dtype, "scale", ("in",))
    if use_bias:
        params["bias"] = Param(shape, zeros, x.dtype, "bias", ("in",))
    return params


@inlined
def _scaled(centred: jax.Array, factor: jax.Array | None, params: dict) -> jax.Array:
    """centred * factor * scale + bias, in the order that takes the fewest products."""
    if "scale" in params:
        scale = of_rank(params["scale"].astype(centred.dtype), centred.ndim)
        if factor is None:
            factor = scale
        elif factor.shape[-1] == 1:  # one for all channels: factor * scale would be as large as x
            centred, factor = centred * factor, scale
        else:
            factor = factor * scale
    y = centred if factor is None else centred * factor
    return y + of_rank(params["bias"].astype(y.dtype), y.ndim) if "bias" in params else y


@inlined
def _inverse_root(var: jax.Array, eps: Scalar) -> jax.Array:
    total = var + jnp.asarray(eps, var.dtype)
    none = total == 0  # equal values with an eps of 0, which stay at the mean
    return jnp.where(none, 0, jax.lax.rsqrt(jnp.where(none, 1, total)))


def _first(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The first value along `axes`, which stay with size 1."""
    over = [axis % x.ndim for axis in axes]
    return x[tuple(slice(0, 1) if axis in over else slice(None) for axis in range(x.ndim))]


def _parts(x: jax.Array, axes: tuple[int, ...], eps: Scalar) -> tuple[jax.Array, jax.Array]:
    """x less its mean over these axes, and 1 / sqrt(var + eps)."""
    average = partial(jnp.mean, axis=axes, keepdims=True)
    centred, _, var = _moments(x, _first(x, axes), average)
    return centred, _inverse_root(var, eps)


def _moments(
    x: jax.Array, shift: jax.Array, average: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x less its mean, the mean, and the biased variance.

    Less a `shift` near them, values are as small as their deviation and are averaged without the
    rounding of a large mean. Neither the results nor their derivatives depend on it.
    """
    shift = jax.lax.stop_gradient(shift)
    from_shift = x - shift
    mean = average(from_shift)
    centred = from_shift - mean
    return centred, shift + mean, average(jnp.square(centred))
