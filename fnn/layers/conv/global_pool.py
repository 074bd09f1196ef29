"""Pools whose windows depend on the size of the image."""

import math

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.dtypes import wide
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.layers.conv import windows


@builder
def global_avg_pool(spatial_axes: int) -> Layer:
    """The mean of each channel over space: [..., H, W, C] -> [..., C] for spatial_axes = 2.

    `spatial_axes` is needed because the number of leading axes is open. The sum is formed in
    float32 or wider. Raises ShapeError for an image without pixels (Lin, Chen & Yan, 2014).

    >>> import jax.numpy as jnp, fnn
    >>> print(fnn.global_avg_pool(2)({}, jnp.arange(8.0).reshape(2, 2, 2)))
    [3. 4.]
    """
    n = checks.count("spatial_axes", spatial_axes)

    def specs(x):
        windows.check_image(x, n)
        return {}, {}

    def apply(params, state, x, *, key, train):
        values = x.astype(wide(x.dtype))
        return jnp.mean(values, axis=tuple(range(-n - 1, -1))).astype(x.dtype), state

    return leaf("global_avg_pool", specs, apply)


@builder
def global_max_pool(spatial_axes: int) -> Layer:
    """The largest value of each channel over space: [..., H, W, C] -> [..., C].

    The gradient goes to the first of equal maxima in row-major order, as in `max_pool` (that of
    `jnp.max` is split among them), and to the first NaN if there is one. `spatial_axes` as
    in `global_avg_pool`. Raises ShapeError for an image without pixels.

    >>> import jax.numpy as jnp, fnn
    >>> print(fnn.global_max_pool(2)({}, jnp.arange(8.0).reshape(2, 2, 2)))
    [6. 7.]
    """
    n = checks.count("spatial_axes", spatial_axes)

    def specs(x):
        windows.check_image(x, n)
        return {}, {}

    def apply(params, state, x, *, key, train):
        at = x.ndim - n - 1
        flat = x.reshape(*x.shape[:at], math.prod(x.shape[at:-1]), x.shape[-1])  # [..., H W, C]
        first = jnp.argmax(flat, axis=-2, keepdims=True)
        y = jnp.take_along_axis(flat, first, axis=-2, mode="promise_in_bounds")
        return jnp.squeeze(y, -2), state

    return leaf("global_max_pool", specs, apply)


@builder
def adaptive_avg_pool(output_size: tuple[int, ...]) -> Layer:
    """Means over a given number of bins: [..., H, W, C] -> [..., *output_size, C].

    Along an axis of n pixels, bin i of m holds the pixels from floor(i n / m) to
    ceil((i + 1) n / m), exclusive, as in PyTorch. So bins overlap by a pixel where m does not
    divide n, and repeat pixels where m > n.

    - `output_size`: m along each spatial axis; its length is the number of spatial axes.

    The sums are formed in float32 or wider. Raises ShapeError for an image without pixels.

    >>> import jax.numpy as jnp, fnn
    >>> print(fnn.adaptive_avg_pool((2,))({}, jnp.arange(5.0).reshape(5, 1))[..., 0])
    [1. 3.]
    """
    output_size = checks.counts("output_size", output_size)
    n = len(output_size)

    def specs(x):
        windows.check_image(x, n)
        return {}, {}

    def apply(params, state, x, *, key, train):
        y = x.astype(wide(x.dtype))
        for axis, bins in enumerate(output_size, x.ndim - n - 1):
            y = _bin_means(y, axis, bins)
        return y.astype(x.dtype), state

    return leaf("adaptive_avg_pool", specs, apply)


def _bin_means(x: jax.Array, axis: int, bins: int) -> jax.Array:
    """By slices: with a matrix of weights, one infinity would turn every bin to NaN."""
    size = x.shape[axis]
    ends = [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]
    means = [jnp.mean(jax.lax.slice_in_dim(x, *e, axis=axis), axis, keepdims=True) for e in ends]
    return jnp.concatenate(means, axis)
