"""Layers that change the resolution without parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import wide
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.layers.conv import windows


@builder
def upsample(
    scale: int | tuple[int, ...], method: str = "nearest", *, spatial_axes: int | None = None
) -> Layer:
    """Enlarge each spatial axis by a whole factor: [..., H, W, C] -> [..., H s, W s, C].

    Pixels are areas: output j is centred at (j + 1/2) / s - 1/2 in units of input pixels, as with
    half-pixel centres in TensorFlow and `align_corners=False` in PyTorch.

    - `scale`: s along each spatial axis, as a tuple; or one int for all `spatial_axes` of them.
    - `method`: `"nearest"` repeats each value, `"linear"` weighs the two nearest by distance,
      `"cubic"` the four nearest by Keys' kernel (1981, a = -1/2), one axis after the other. Beyond
      the border the outermost value is repeated.
    - `spatial_axes`: how many axes are spatial, 2 for images; needed beside one int, as the number
      of leading axes is open.

    Sums are formed in float32 or wider. Raises OptionError, and ShapeError for an empty axis.

    >>> import jax.numpy as jnp, fnn
    >>> x = jnp.array([[0.0], [4.0]])
    >>> print(fnn.upsample((2,))({}, x)[..., 0], fnn.upsample((2,), "linear")({}, x)[..., 0])
    [0. 0. 4. 4.] [0. 1. 3. 4.]
    """
    if spatial_axes is not None:
        spatial_axes = checks.count("spatial_axes", spatial_axes)
    elif isinstance(scale, int) and not isinstance(scale, bool):
        raise errors.OptionError(
            "spatial_axes beside one scale for all axes",
            f"scale={scale} alone",
            f"pass spatial_axes=2 for images, or scale=({scale}, {scale})",
        )
    scale = checks.counts("scale", scale, spatial_axes)
    checks.choice("method", method, ("nearest", *_METHODS))
    n = len(scale)

    def specs(x):
        windows.check_image(x, n)
        return {}, {}

    def apply(params, state, x, *, key, train):
        y = x.astype(wide(x.dtype))
        for axis, s in reversed(list(enumerate(scale, x.ndim - n - 1))):  # long rows last
            nearest = method == "nearest"
            y = jnp.repeat(y, s, axis) if nearest else _stretch(y, axis, s, *_METHODS[method])
        return y.astype(x.dtype), state

    return leaf("upsample", specs, apply)


def _cubic(d: float) -> float:
    """Keys (1981), equation 15."""
    d = abs(d)
    if d < 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


_METHODS: dict[str, tuple[int, Callable[[float], float]]] = {  # reach in pixels, weight(distance)
    "linear": (1, lambda d: max(1 - abs(d), 0.0)),
    "cubic": (2, _cubic),
}


def _stretch(x: jax.Array, axis: int, scale: int, reach: int, weight: Callable) -> jax.Array:
    """Along one axis. The weights repeat with each input pixel, so there are `scale` sets of them.

    Only values within reach are summed: in a product with a matrix of weights, one infinity would
    turn every output in its row to NaN.
    """
    phases = []
    for phase in range(scale):
        at = (phase + 0.5) / scale - 0.5  # relative to the centre of the pixel it lies in
        terms = [
            w * _neighbours(x, axis, k)
            for k in range(-reach, reach + 1)
            if (w := weight(k - at)) != 0
        ]
        phases.append(sum(terms[1:], terms[0]))
    y = jnp.stack(phases, axis + 1)  # [..., H, s, ...]
    return y.reshape(*x.shape[:axis], x.shape[axis] * scale, *x.shape[axis + 1 :])


def _neighbours(x: jax.Array, axis: int, k: int) -> jax.Array:
    """x[i + k] for each i; beyond the border, the value at it."""
    size = x.shape[axis]
    beyond = min(abs(k), size)

    def part(start, stop):
        return jax.lax.slice_in_dim(x, start, stop, axis=axis)

    if k < 0:
        return jnp.concatenate([part(0, 1)] * beyond + [part(0, size - beyond)], axis)
    return jnp.concatenate([part(beyond, size)] + [part(size - 1, size)] * beyond, axis)


@builder
def pixel_shuffle(r: int) -> Layer:
    """Turn channels into pixels: [..., H, W, C r^2] -> [..., H r, W r, C].

    y[h r + i, w r + j, c] = x[h, w, (c r + i) r + j]. The channels of one patch are neighbours, as
    in PyTorch; in the paper (Shi et al., 2016, equation 4) and in TensorFlow's `depth_to_space`
    they are C apart.

    - `r`: the factor by which both spatial axes grow.

    Raises ShapeError for a number of channels that r^2 does not divide.

    >>> import jax.numpy as jnp, fnn
    >>> print(fnn.pixel_shuffle(2)({}, jnp.arange(4.0).reshape(1, 1, 4))[..., 0])
    [[0. 1.]
     [2. 3.]]
    """
    r = checks.count("r", r)

    def specs(x):
        checks.array(x, 3, "[..., H, W, C r^2]")
        if x.shape[-1] % r**2:
            raise errors.ShapeError(
                f"last axis divisible by r^2 = {r**2}", f"x {x.shape}", "change r or x"
            )
        return {}, {}

    def apply(params, state, x, *, key, train):
        *lead, h, w, c = x.shape
        c = c // r**2
        x = jnp.moveaxis(x.reshape(*lead, h, w, c, r, r), -3, -1)  # [..., H, W, r, r, C]
        return jnp.swapaxes(x, -4, -3).reshape(*lead, h * r, w * r, c), state

    return leaf("pixel_shuffle", specs, apply)


@builder
def pixel_unshuffle(r: int) -> Layer:
    """Turn pixels into channels, the inverse of `pixel_shuffle`.

    [..., H r, W r, C] -> [..., H, W, C r^2], y[h, w, (c r + i) r + j] = x[h r + i, w r + j, c].

    - `r`: the factor by which both spatial axes shrink.

    Raises ShapeError for an image that r does not divide.

    >>> import jax.numpy as jnp, fnn
    >>> print(fnn.pixel_unshuffle(2)({}, jnp.arange(4.0).reshape(2, 2, 1)))
    [[[0. 1. 2. 3.]]]
    """
    r = checks.count("r", r)

    def specs(x):
        checks.array(x, 3, "[..., H r, W r, C]")
        if x.shape[-3] % r or x.shape[-2] % r:
            raise errors.ShapeError(
                f"spatial axes divisible by r = {r}", f"x {x.shape}", "change r or x"
            )
        return {}, {}

    def apply(params, state, x, *, key, train):
        *lead, h, w, c = x.shape
        h, w = h // r, w // r
        x = jnp.swapaxes(x.reshape(*lead, h, r, w, r, c), -4, -3)  # [..., H, W, r, r, C]
        return jnp.moveaxis(x, -1, -3).reshape(*lead, h, w, c * r**2), state

    return leaf("pixel_unshuffle", specs, apply)
