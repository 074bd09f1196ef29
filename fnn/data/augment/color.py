"""Values of images and sequences changed where they are."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.dtypes import widened
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.data.augment.contract import (
    ANY,
    IMAGE,
    Augmentation,
    augmentation,
    between,
    check_range,
    draws,
    f32,
)


@builder
def brightness(delta: Scalar) -> Augmentation:
    """Add one number to all values, drawn uniformly from -delta ... delta: [...] -> [...].

    Values may leave their range: in `chain`, `lambda key, x: jnp.clip(x, 0, 1)` keeps them in it.

    - `delta`: in units of x, at least 0; a traced number is not checked.

    The function raises DtypeError for integers.

    >>> from fnn.data import augment
    >>> y = augment.brightness(0.2)(jax.random.key(0), jnp.full((4, 4, 1), 0.5))
    >>> bool((y == y[0, 0, 0]).all() and abs(y[0, 0, 0] - 0.5) <= 0.2)
    True
    """
    checks.number("delta", delta, 0.0, math.inf, open_high=True)

    def fn(key, x):
        wide = widened(x)
        return (wide + between(draws(key, 1)[0], -f32(delta), delta).astype(wide.dtype)).astype(
            x.dtype
        )

    return augmentation("brightness", ANY, fn, floats=True)


@builder
def contrast(low: Scalar, high: Scalar) -> Augmentation:
    """Scale each channel about its mean: y = m + f (x - m), [..., H, W, C] -> [..., H, W, C].

    f is drawn uniformly from low ... high, the mean m of a channel is over the image's pixels,
    summed in float32 or wider. Values may leave their range, as in `brightness`.

    - `low`, `high`: at least 0; 1 keeps the image as it is. Traced numbers are not checked.

    The function raises DtypeError for integers.

    >>> from fnn.data import augment
    >>> x = jnp.array([0.0, 1.0]).reshape(1, 2, 1)
    >>> print(augment.contrast(0.5, 0.5)(jax.random.key(0), x)[0, :, 0])
    [0.25 0.75]
    """
    check_range(low, high)

    def fn(key, x):
        wide = widened(x)
        mean = jnp.sum(wide, axis=(-3, -2), keepdims=True) / max(x.shape[-3] * x.shape[-2], 1)
        factor = between(draws(key, 1)[0], low, high).astype(wide.dtype)
        return (mean + factor * (wide - mean)).astype(x.dtype)

    return augmentation("contrast", IMAGE, fn, floats=True)


@builder
def noise(stddev: Scalar) -> Augmentation:
    """Add stddev z, with z ~ N(0, 1) drawn for each value: [...] -> [...].

    In a network, `fnn.gaussian_noise` does the same.

    - `stddev`: in units of x, at least 0; a traced number is not checked.

    The function raises DtypeError for integers.

    >>> from fnn.data import augment
    >>> y = augment.noise(0.1)(jax.random.key(0), jnp.zeros((100, 100, 1)))
    >>> print(f"{y.std():.2f}")
    0.10
    """
    checks.number("stddev", stddev, 0.0, math.inf, open_high=True)

    def fn(key, x):
        wide = widened(x)
        added = jax.random.normal(key, x.shape, wide.dtype) * f32(stddev).astype(wide.dtype)
        return (wide + added).astype(x.dtype)

    return augmentation("noise", ANY, fn, floats=True)
