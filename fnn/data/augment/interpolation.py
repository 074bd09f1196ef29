"""Reading an image between its pixels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import is_floating, widened
from fnn.core.shapes import of_rank
from fnn.core.types import Scalar
from fnn.data.augment.contract import fill_of

LABELS = "; for images of labels, pass order=0"


def check_order(order: int) -> int:
    order = checks.count("order", order, least=0)
    if order > 1:
        mend = "0 takes the nearest pixel, 1 interpolates linearly"
        raise errors.OptionError("order 0 or 1", f"{order}", mend)
    return order


def sample(x: jax.Array, rows: jax.Array, cols: jax.Array, order: int, fill: Scalar) -> jax.Array:
    """x at places between its pixels: [..., H, W, C], rows and cols [h, w] -> [..., h, w, C].

    Outside of x is `fill`, to which the edges fade over one pixel. This is
    `jax.scipy.ndimage.map_coordinates`, but for NaN and infinities, which there reach a neighbour
    by a weight of 0.
    """
    h, w = x.shape[-3:-1]
    edge = [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)]
    padded = jnp.pad(x, edge, constant_values=fill_of(fill, x.dtype))  # [..., H + 2, W + 2, C]
    rows, cols = jnp.clip(rows, -1, h), jnp.clip(cols, -1, w)
    if order == 0:
        return _take(padded, jnp.round(rows), jnp.round(cols)).astype(x.dtype)
    parts = [
        weighed(of_rank((down * right)[..., None], x.ndim), _take(padded, i, j))
        for i, down in neighbours(rows, h - 1)
        for j, right in neighbours(cols, w - 1)
    ]
    return functools.reduce(jnp.add, parts).astype(x.dtype)


def neighbours(places: jax.Array, last: int) -> list[tuple[jax.Array, jax.Array]]:
    """The two whole numbers around each place, the lower at most `last`, and their weights."""
    low = jnp.minimum(jnp.floor(places), last)
    share = places - low
    return [(low, 1 - share), (low + 1, share)]


def weighed(weight: jax.Array, values: jax.Array) -> jax.Array:
    """weight * values, but 0 where a weight of 0 meets NaN or an infinity."""
    counts = (weight != 0) | jnp.isfinite(values)
    return weight.astype(values.dtype) * jnp.where(counts, values, 0)


def _take(x: jax.Array, rows: jax.Array, cols: jax.Array) -> jax.Array:
    """Pixels by their numbers from -1, at least in float32."""
    i, j = (index.astype(jnp.int32) + 1 for index in (rows, cols))
    pixels = x.at[..., i, j, :].get(mode="promise_in_bounds")
    return widened(pixels) if is_floating(pixels) else pixels
