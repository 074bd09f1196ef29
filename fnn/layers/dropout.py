"""Layers that draw noise in training."""

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.dtypes import wide
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.core.types import Scalar


@builder
def dropout(rate: Scalar) -> Layer:
    """In training, drop each value with probability `rate`: y = m x / (1 - rate).

    The mask m is 1 with probability 1 - rate, else 0, so the mean of y is x; in evaluation y = x
    (Srivastava et al., 2014). [...] -> [...].

    - `rate`: the probability of dropping, in [0, 1]; a traced number is not checked.

    Raises OptionError for a rate outside [0, 1], RandomKeyError for training without a key.

    >>> import jax, jax.numpy as jnp, fnn
    >>> y, _ = fnn.dropout(0.5).apply({}, {}, jnp.ones(8), key=jax.random.key(0), train=True)
    >>> print(jnp.unique(y))
    [0. 2.]
    """
    checks.number("rate", rate, 0.0, 1.0)
    return _noise("dropout", 0, "[...]", lambda key, x: _drop(key, x, rate, x.shape))


@builder
def spatial_dropout(rate: Scalar, spatial_axes: int) -> Layer:
    """In training, drop whole channels with probability `rate`: y = m x / (1 - rate).

    The mask m, 1 with probability 1 - rate, is one draw per channel of each example, the same at
    all positions: neighbouring values are so alike that dropping single ones removes little
    (Tompson et al., 2015). In evaluation y = x. [..., H, W, C] -> [..., H, W, C].

    - `rate`: as in `dropout`.
    - `spatial_axes`: how many axes are spatial, at least 1 (2 for images). It is needed because
      the number of leading axes is open.

    Raises as `dropout`, and ShapeError for an input with fewer axes.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net, x = fnn.spatial_dropout(0.5, spatial_axes=1), jnp.ones((3, 4))
    >>> y, _ = net.apply({}, {}, x, key=jax.random.key(0), train=True)
    >>> bool((y == y[0]).all())
    True
    """
    checks.number("rate", rate, 0.0, 1.0)
    spatial_axes = checks.count("spatial_axes", spatial_axes)

    def draw(key, x):
        lead = x.shape[: x.ndim - spatial_axes - 1]
        return _drop(key, x, rate, (*lead, *(1,) * spatial_axes, x.shape[-1]))

    return _noise(
        "spatial_dropout", spatial_axes + 1, f"[..., {spatial_axes} spatial axes, C]", draw
    )


@builder
def drop_path(rate: Scalar, feature_axes: int) -> Layer:
    """Stochastic depth: in training, drop whole examples with probability `rate`.

        y = m x / (1 - rate)

    The mask m, 1 with probability 1 - rate, is one draw per example. At the end of a residual
    branch, x + f.drop(branch(x)), it skips the branch for some examples (Huang et al., 2016,
    who scale in evaluation instead). In evaluation y = x. [..., H, W, C] -> [..., H, W, C].

    - `rate`: as in `dropout`; in a deep network it usually grows with depth, from 0.
    - `feature_axes`: how many trailing axes one example has, 3 for images, 1 for vectors. It is
      needed because the number of leading axes is open.

    Raises as `dropout`, and ShapeError for an input with fewer axes.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net, x = fnn.drop_path(0.5, 1), jnp.ones((6, 2))
    >>> y, _ = net.apply({}, {}, x, key=jax.random.key(0), train=True)
    >>> print(jnp.unique(y, axis=0))
    [[0. 0.]
     [2. 2.]]
    """
    checks.number("rate", rate, 0.0, 1.0)
    n = checks.count("feature_axes", feature_axes)

    def draw(key, x):
        return _drop(key, x, rate, (*x.shape[: x.ndim - n], *(1,) * n))

    return _noise("drop_path", n, f"with the {n} axes of one example", draw)


@builder
def alpha_dropout(rate: Scalar) -> Layer:
    """Dropout for `jax.nn.selu`: drops to its lower limit and keeps mean 0 and variance 1.

        y = a (m x + (1 - m) l) + b,   a = (q + l^2 q (1 - q))^(-1/2),   b = -a (1 - q) l

    The mask m is 1 with probability q = 1 - rate, and l = -1.7580993 is the limit of SELU for very
    negative inputs. In evaluation y = x (Klambauer et al., 2017). [...] -> [...].

    - `rate`: as in `dropout`. At 1, where a is undefined, y is its limit 0.

    Raises as `dropout`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net, x = fnn.alpha_dropout(0.2), jax.random.normal(jax.random.key(0), (10_000,))
    >>> y, _ = net.apply({}, {}, x, key=jax.random.key(1), train=True)
    >>> bool(jnp.abs(y.mean()) < 0.05), bool(jnp.abs(y.var() - 1) < 0.05)
    (True, True)
    """
    checks.number("rate", rate, 0.0, 1.0)

    def draw(key, x):
        keep = _keep(rate, x)
        some = jnp.where(keep > 0, keep, 1)
        a = jnp.where(keep > 0, jax.lax.rsqrt(some * (1 + _SELU_LIMIT**2 * (1 - keep))), 0)
        kept = a * (x.astype(keep.dtype) - (1 - keep) * _SELU_LIMIT)
        dropped = a * keep * _SELU_LIMIT
        return jnp.where(_mask(key, keep, x.shape), kept, dropped).astype(x.dtype)

    return _noise("alpha_dropout", 0, "[...]", draw)


@builder
def gaussian_noise(stddev: Scalar) -> Layer:
    """In training, add noise: y = x + stddev z, with z ~ N(0, 1) drawn for each value.

    In evaluation y = x. Small noise acts as a penalty on the network's slope (Bishop, 1995).
    [...] -> [...].

    - `stddev`: its standard deviation, in units of x, at least 0; a traced number is not checked.

    Raises OptionError for a negative or infinite stddev, RandomKeyError for training without a
    key.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net, x = fnn.gaussian_noise(0.1), jnp.zeros(10_000)
    >>> y, _ = net.apply({}, {}, x, key=jax.random.key(0), train=True)
    >>> print(f"{y.std():.2f}")
    0.10
    """
    checks.number("stddev", stddev, 0.0, float("inf"), open_high=True)

    def draw(key, x):
        noise = jax.random.normal(key, x.shape, wide(x.dtype))
        noise = noise * jnp.asarray(stddev).astype(noise.dtype)
        return (x.astype(noise.dtype) + noise).astype(x.dtype)

    return _noise("gaussian_noise", 0, "[...]", draw)


_SELU_LIMIT = -1.0507009873554805 * 1.6732632423543772  # minus its scale times its alpha


def _noise(name: str, least: int, layout: str, draw) -> Layer:
    """`draw(key, x)` in training, x in evaluation; x has at least `least` axes."""

    def specs(x):
        checks.array(x, least, layout)
        return {}, {}

    def apply(params, state, x, *, key, train):
        if not train:
            return x, state
        checks.need_key(key)
        return draw(key, x), state

    return leaf(name, specs, apply)


def _drop(key, x: jax.Array, rate: Scalar, shape: tuple[int, ...]) -> jax.Array:
    """x / (1 - rate) under a mask of a shape that broadcasts to x's."""
    return drop_where(_mask(key, _keep(rate, x), shape), x, rate)


def drop_where(mask: jax.Array, x: jax.Array, rate: Scalar) -> jax.Array:
    """x / (1 - rate) where the mask is True, 0 elsewhere."""
    keep = _keep(rate, x)
    scale = jnp.where(keep > 0, 1 / jnp.where(keep > 0, keep, 1), 0)
    scaled = (x.astype(scale.dtype) * scale).astype(x.dtype)
    return jnp.where(mask, scaled, jnp.zeros_like(x))


def _keep(rate: Scalar, x: jax.Array) -> jax.Array:
    return 1 - jnp.asarray(rate).astype(wide(x.dtype))


def _mask(key, keep: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.bernoulli(key, keep.astype(jnp.float32), shape)
