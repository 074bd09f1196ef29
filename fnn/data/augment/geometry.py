"""Images moved, turned, scaled and bent."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.data.augment.contract import (
    ANY,
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
from fnn.data.augment.interpolation import LABELS, check_order, sample


@builder
def flip(axis: int = -2, rate: Scalar = 0.5) -> Augmentation:
    """Mirror along an axis with probability `rate`: [...] -> [...], of any dtype.

    - `axis`: counted from the last, -1, since leading axes are open: -2 mirrors left and right of
      an image [..., H, W, C] and the time of a sequence [..., T, C], -3 top and bottom.
    - `rate`: in [0, 1]; a traced number is not checked.

    The function raises ShapeError for an x without that axis.

    >>> from fnn.data import augment
    >>> x = jnp.array([[1], [2], [3]])
    >>> print(augment.flip(rate=1.0)(jax.random.key(0), x)[:, 0])
    [3 2 1]
    """
    checks.number("rate", rate, 0.0, 1.0)
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)) or axis >= 0:
        mend = "count it from the last axis, -1: leading axes are open"
        raise errors.OptionError("axis to be an int below 0", errors.show(axis), mend)

    def fn(key, x):
        checks.rank(x, -axis, f"with an axis {axis}")
        return jnp.where(jax.random.bernoulli(key, f32(rate)), jnp.flip(x, axis), x)

    return augmentation("flip", ANY, fn)


@builder
def shift(pixels: Any, *, fill: Scalar = 0.0) -> Augmentation:
    """Move by whole pixels: y[r, c] = x[r - u, c - v], where that is outside of x `fill`.

    u and v are drawn uniformly from -pixels ... pixels. [..., H, W, C] -> [..., H, W, C], of any
    dtype; `affine` moves by fractions of a pixel.

    - `pixels`: the farthest move, an integer at least 0, or a pair of them for rows and columns; a
      fraction of an image's size is `round(fraction * size)`. May be traced.
    - `fill`: what comes in at the edges.

    >>> from fnn.data import augment
    >>> x = jnp.arange(1, 4).reshape(1, 3, 1)
    >>> print(augment.shift((0, 2))(jax.random.key(0), x)[0, :, 0])
    [0 0 1]
    """
    rows, cols = map(_pixels, _two(pixels))
    check_fill(fill)

    def fn(key, x):
        for u, axis, most in zip(draws(key, 2), (-3, -2), (rows, cols), strict=True):
            x = _moved(x, whole(u, -most, most), axis, fill)
        return x

    return augmentation("shift", IMAGE, fn)


def _two(value: Any) -> tuple[Any, Any]:
    """An option for rows and columns, given once or as a pair."""
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    return (value[0], value[1]) if pair else (value, value)


def _pixels(value: Any) -> Any:
    """A count, plain or traced: then of int32, since minus an unsigned one is not below 0."""
    scalar = isinstance(value, jax.Array) and value.shape == ()
    whole = scalar and jnp.issubdtype(value.dtype, jnp.integer)
    if whole and isinstance(value, jax.core.Tracer):
        return value.astype(jnp.int32)
    return checks.count("pixels", np.asarray(value).item() if whole else value, least=0)


def _moved(x: jax.Array, by: jax.Array, axis: int, fill: Scalar) -> jax.Array:
    """x moved along an axis by a traced number of places."""
    source = jnp.arange(x.shape[axis], dtype=jnp.int32) - by
    inside = (source >= 0) & (source < x.shape[axis])
    return jnp.where(along(inside, x, axis), jnp.roll(x, by, axis), fill_of(fill, x.dtype))


@builder
def crop(size: int | tuple[int, int], padding: Any = 0, *, fill: Scalar = 0.0) -> Augmentation:
    """Cut out a window at a random place: [..., H, W, C] -> [..., h, w, C], of any dtype.

    All places of the window inside the padded image are equally likely.

    - `size`: of the window, an int or (h, w); static.
    - `padding`: pixels put around the image first, an int or one for rows and one for columns.
      `crop(32, padding=4)` is usual for images of 32 x 32 (He et al., 2016, section 4.2).
    - `fill`: the value of the padding.

    The function raises ShapeError if the padded image is smaller than the window.

    >>> from fnn.data import augment
    >>> augment.crop((24, 16))(jax.random.key(0), jnp.ones((8, 28, 28, 3))).shape
    (8, 24, 16, 3)
    """
    size = checks.counts("size", size, 2)
    padding = checks.counts("padding", padding, 2, least=0)
    check_fill(fill)

    def fn(key, x):
        edge = [(0, 0)] * (x.ndim - 3) + [(p, p) for p in padding] + [(0, 0)]
        padded = jnp.pad(x, edge, constant_values=fill_of(fill, x.dtype)) if any(padding) else x
        room = [n - m for n, m in zip(padded.shape[-3:-1], size, strict=True)]
        if min(room) < 0:
            got = f"x {x.shape} with padding {padding}"
            raise errors.ShapeError(f"images of at least {size}", got, "pad more, or crop less")
        for u, axis, n, most in zip(draws(key, 2), (-3, -2), size, room, strict=True):
            start = whole(u, 0, most)
            padded = jax.lax.dynamic_slice_in_dim(padded, start, n, padded.ndim + axis)
        return padded

    return augmentation("crop", IMAGE, fn)


@builder
def rotate(degrees: Scalar, *, fill: Scalar = 0.0, order: int = 1) -> Augmentation:
    """Turn about the centre by an angle drawn uniformly from -degrees ... degrees.

    [..., H, W, C] -> [..., H, W, C].

    - `degrees`: at least 0; a traced number is not checked.
    - `fill`, `order`: as in `affine`, which turns, moves, scales and shears at once.

    >>> from fnn.data import augment
    >>> augment.rotate(15)(jax.random.key(0), jnp.ones((28, 28, 1))).shape
    (28, 28, 1)
    """
    return _affine("rotate", degrees=degrees, fill=fill, order=order)


@builder
def zoom(low: Scalar, high: Scalar, *, fill: Scalar = 0.0, order: int = 1) -> Augmentation:
    """Scale about the centre by a factor drawn uniformly from low ... high.

    The size stays: [..., H, W, C] -> [..., H, W, C]. Above 1 the picture grows over the edges,
    below 1 `fill` surrounds it.

    - `low`, `high`: above 0; traced numbers are not checked.
    - `fill`, `order`: as in `affine`.

    >>> from fnn.data import augment
    >>> x = jnp.ones((5, 5, 1))
    >>> print(augment.zoom(0.5, 0.5)(jax.random.key(0), x)[2, :, 0])
    [0. 1. 1. 1. 0.]
    """
    return _affine("zoom", zoom=(low, high), fill=fill, order=order)


@builder
def shear(degrees: Scalar, *, fill: Scalar = 0.0, order: int = 1) -> Augmentation:
    """Slide rows along themselves, by tan(a) pixels a row from the middle one.

    The angle a is drawn uniformly from -degrees ... degrees. [..., H, W, C] -> [..., H, W, C].

    - `degrees`: in [0, 90); a traced number is not checked.
    - `fill`, `order`: as in `affine`.

    >>> from fnn.data import augment
    >>> augment.shear(10)(jax.random.key(0), jnp.ones((28, 28, 1))).shape
    (28, 28, 1)
    """
    return _affine("shear", shear=degrees, fill=fill, order=order)


@builder
def affine(
    degrees: Scalar = 0.0,
    shift: Any = 0.0,
    zoom: tuple[Scalar, Scalar] = (1.0, 1.0),
    shear: Scalar = 0.0,
    *,
    fill: Scalar = 0.0,
    order: int = 1,
) -> Augmentation:
    """Shear, scale, turn and move an image, which is resampled once: [..., H, W, C] likewise.

        y[p] = x[A^-1 (p - m - t) + m],  A = z [[cos, -sin], [sin, cos]] [[1, 0], [k, 1]]

    p is (row, column) and m the middle of the image. The angle of the sine and cosine is drawn
    from -degrees ... degrees (positive turns counterclockwise), t from -shift ... shift, z from
    zoom, k is the tangent of an angle drawn from -shear ... shear; all uniformly.

    - `degrees`: at least 0.
    - `shift`: in pixels, at least 0, not necessarily whole; or a pair for rows and columns.
    - `zoom`: (low, high), above 0; 2 doubles the size of what is seen.
    - `shear`: in degrees, in [0, 90).
    - `fill`: what lies outside of x. The edges fade to it over one pixel.
    - `order`: 1 interpolates linearly between the four pixels around, and needs floats; 0 takes the
      nearest, whatever the dtype. Draws depend on the key alone, so an image of labels goes along
      with its picture: the same options with order=0, and the same key.

    Numbers may be traced, and are not checked then. Places are computed in float32, and so are sums
    of narrower dtypes. NaN and infinities reach only what is interpolated from them. The function
    raises DtypeError for integers with order=1.

    >>> from fnn.data import augment
    >>> f = augment.affine(degrees=10, shift=2, zoom=(0.9, 1.1))
    >>> keys, images = jax.random.split(jax.random.key(0), 8), jnp.ones((8, 28, 28, 1))
    >>> jax.jit(jax.vmap(f))(keys, images).shape
    (8, 28, 28, 1)
    """
    return _affine("affine", degrees, shift, zoom, shear, fill, order)


def _affine(
    name: str,
    degrees: Scalar = 0.0,
    shift: Any = 0.0,
    zoom: tuple[Scalar, Scalar] = (1.0, 1.0),
    shear: Scalar = 0.0,
    fill: Scalar = 0.0,
    order: int = 1,
) -> Augmentation:
    moves = _two(shift)
    checks.number("degrees", degrees, 0.0, math.inf, open_high=True)
    checks.number("shear", shear, 0.0, 90.0, open_high=True)
    for most in moves:
        checks.number("shift", most, 0.0, math.inf, open_high=True)
    check_pair("zoom", zoom, positive=True)
    check_fill(fill)
    order = check_order(order)

    def fn(key, x):
        turn, slide, scale, *places = draws(key, 5)
        angle = jnp.radians(between(turn, -f32(degrees), degrees))
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        k = jnp.tan(jnp.radians(between(slide, -f32(shear), shear)))
        z = between(scale, *zoom)
        middle = [(n - 1) / 2 for n in x.shape[-3:-1]]
        r, c = (
            jnp.arange(n, dtype=jnp.float32) - m - between(u, -f32(most), most)
            for n, m, u, most in zip(x.shape[-3:-1], middle, places, moves, strict=True)
        )
        r, c = r[:, None], c[None, :]
        rows = (cos * r + sin * c) / z  # [H, W]
        cols = (cos * c - sin * r) / z - k * rows
        return sample(x, rows + middle[0], cols + middle[1], order, fill)

    return augmentation(name, IMAGE, fn, floats=order == 1, mend=LABELS)


@builder
def elastic(alpha: Scalar, sigma: Scalar, *, fill: Scalar = 0.0, order: int = 1) -> Augmentation:
    """Bend an image, as handwriting varies: y[p] = x[p + alpha (G u)(p)].

    Each pixel's u is a pair of numbers drawn uniformly from -1 ... 1, smoothed by a Gaussian G of
    deviation `sigma` (zero outside of the image) and scaled. [..., H, W, C] -> [..., H, W, C].

    - `alpha`: the strength, at least 0. The moves have a deviation of about 0.16 alpha / sigma
      pixels: alpha=34, sigma=4 (Simard et al.'s, for digits of 29 x 29) move by 1.4.
    - `sigma`: how many pixels move together, above 0.
    - `fill`, `order`: as in `affine`.

    Simard, Steinkraus & Platt (2003), section 2. Numbers may be traced.

    >>> from fnn.data import augment
    >>> augment.elastic(34, 4)(jax.random.key(0), jnp.ones((28, 28, 1))).shape
    (28, 28, 1)
    """
    checks.number("alpha", alpha, 0.0, math.inf, open_high=True)
    checks.positive("sigma", sigma)
    check_fill(fill)
    order = check_order(order)

    def fn(key, x):
        h, w = x.shape[-3:-1]
        u = jax.random.uniform(key, (2, h, w), jnp.float32, -1, 1)
        smooth = jnp.einsum(
            "ij,njk,kl->nil", _gaussian(h, sigma), u, _gaussian(w, sigma), precision="highest"
        )  # [2, H, W]
        rows = jnp.arange(h, dtype=jnp.float32)[:, None] + f32(alpha) * smooth[0]
        cols = jnp.arange(w, dtype=jnp.float32)[None, :] + f32(alpha) * smooth[1]
        return sample(x, rows, cols, order, fill)

    return augmentation("elastic", IMAGE, fn, floats=order == 1, mend=LABELS)


def _gaussian(n: int, sigma: Scalar) -> jax.Array:
    """The Gaussian filter of n values with zeros around, as a matrix [n, n]: for any sigma."""

    def bell(k):
        return jnp.exp(-0.5 * jnp.square(k / f32(sigma)))

    near = jnp.sum(bell(jnp.arange(-8, 9, dtype=jnp.float32)))
    total = jnp.where(f32(sigma) > 1, f32(sigma) * math.sqrt(2 * math.pi), near)  # over all ints
    i = jnp.arange(n, dtype=jnp.float32)
    return bell(i[:, None] - i[None, :]) / total
