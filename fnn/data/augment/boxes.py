"""Rectangles of images blotted out."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.data.augment.contract import (
    IMAGE,
    Augmentation,
    along,
    augmentation,
    between,
    check_fill,
    check_pair,
    draws,
    f32,
    fill_of,
    whole,
)


@builder
def cutout(size: int | tuple[int, int], *, fill: Scalar = 0.0) -> Augmentation:
    """Blot out a box around a pixel, each being equally likely: [..., H, W, C] likewise.

    The box is cut off at the image's edges, near which pixels are therefore blotted out less often.
    Any dtype. DeVries & Taylor (2017).

    - `size`: of the box in pixels, an int or (h, w); static. The paper has 16 for images of 32 x 32
      with 10 classes, 8 with 100.
    - `fill`: the value of the box; the mean of the images in the paper, where it is 0.

    >>> from fnn.data import augment
    >>> y = augment.cutout(2)(jax.random.key(0), jnp.ones((4, 4, 1), int))
    >>> print(y[..., 0])
    [[1 1 1 1]
     [1 1 1 1]
     [1 1 0 0]
     [1 1 0 0]]
    """
    size = checks.counts("size", size, 2)
    check_fill(fill)

    def fn(key, x):
        starts = [
            whole(u, 0, max(n - 1, 0)) - m // 2
            for u, n, m in zip(draws(key, 2), x.shape[-3:-1], size, strict=True)
        ]
        return blotted(x, starts, size, fill)

    return augmentation("cutout", IMAGE, fn)


@builder
def erase(
    area: tuple[Scalar, Scalar] = (0.02, 0.33),
    aspect: tuple[Scalar, Scalar] = (0.3, 1 / 0.3),
    *,
    fill: Scalar = 0.0,
) -> Augmentation:
    """Random erasing: blot out a box of random size, shape and place: [..., H, W, C] likewise.

    The box's share of the image is drawn uniformly, the logarithm of height / width uniformly among
    those at which it fits, then its place among all inside the image; sides are rounded to pixels.
    Any dtype. Zhong et al. (2017), who draw height / width itself, and again until it fits.

    - `area`: (low, high) of the share, in [0, 1]; the defaults are the paper's.
    - `aspect`: (low, high) of height / width, above 0.
    - `fill`: the value of the box.

    Numbers may be traced, and are not checked then. The paper erases half of the images:
    `with_probability(0.5, erase())`.

    >>> from fnn.data import augment
    >>> y = augment.erase(area=(0.25, 0.25), aspect=(1, 1))(jax.random.key(0), jnp.ones((8, 8, 3)))
    >>> print(1 - y.mean())
    0.25
    """
    check_pair("area", area)
    checks.number("high of area", area[1], 0.0, 1.0)
    check_pair("aspect", aspect, positive=True)
    check_fill(fill)

    def fn(key, x):
        (h, w), u = (max(n, 1) for n in x.shape[-3:-1]), draws(key, 4)
        pixels = h * w * between(u[0], *area)
        fits = jnp.log(pixels / w**2), jnp.log(h**2 / pixels)  # of height / width
        low, high = (jnp.clip(jnp.log(f32(end)), *fits) for end in aspect)
        ratio = jnp.exp(between(u[1], low, high))
        sides = jnp.sqrt(pixels * ratio), jnp.sqrt(pixels / ratio)
        size = [
            jnp.where(pixels > 0, jnp.clip(jnp.round(side), 0, n), 0).astype(jnp.int32)
            for side, n in zip(sides, (h, w), strict=True)
        ]
        starts = [whole(v, 0, n - side) for v, n, side in zip(u[2:], (h, w), size, strict=True)]
        return blotted(x, starts, size, fill)

    return augmentation("erase", IMAGE, fn)


def box(x: jax.Array, starts, size) -> jax.Array:
    """Where a box of an image lies, bools with as many axes as x: [..., H, W, 1]."""
    inside = True
    for axis, start, side in zip((-3, -2), starts, size, strict=True):
        i = jnp.arange(x.shape[axis], dtype=jnp.int32)
        inside &= along((i >= start) & (i < start + side), x, axis)
    return jnp.asarray(inside)


def blotted(x: jax.Array, starts, size, fill: Scalar) -> jax.Array:
    return jnp.where(box(x, starts, size), fill_of(fill, x.dtype), x)
