"""Pools: one value per window and channel, over any number of spatial axes."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import errors
from fnn.core.dtypes import wide
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.layers.conv import windows
from fnn.layers.conv.select_and_scatter import max_of_slices, suits_slices
from fnn.layers.conv.windows import Padding


@builder
def max_pool(
    window: tuple[int, ...],
    *,
    strides: int | tuple[int, ...] | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """The largest value in each window: [..., H, W, C] -> [..., H', W', C].

    - `window`: its size along each spatial axis.
    - `strides`: the step between windows; None is the window's size, so that they do not overlap.
    - `padding`: `"VALID"`, `"SAME"`, an int or (low, high) pairs, with minus infinity.

    The gradient goes to the first of equal maxima, in row-major order. Raises OptionError, also for
    a padding that could fill a whole window, and ShapeError for an input that is too small.

    >>> import jax.numpy as jnp, fnn
    >>> x = jnp.arange(16.0).reshape(4, 4, 1)
    >>> print(fnn.max_pool((2, 2))({}, x)[..., 0])
    [[ 5.  7.]
     [13. 15.]]
    """
    return _pool("max_pool", _max_pool, pool_window(window, strides, padding))


@builder
def min_pool(
    window: tuple[int, ...],
    *,
    strides: int | tuple[int, ...] | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """The smallest value in each window, -max(-x): [..., H, W, C] -> [..., H', W', C].

    - `window`, `strides`, `padding`: as in `max_pool`, the padding with infinity.

    The gradient goes to the first of equal minima, in row-major order. Raises as `max_pool`.

    >>> import jax.numpy as jnp, fnn
    >>> x = jnp.arange(16.0).reshape(4, 4, 1)
    >>> print(fnn.min_pool((2, 2))({}, x)[..., 0])
    [[ 0.  2.]
     [ 8. 10.]]
    """
    win = pool_window(window, strides, padding)
    return _pool("min_pool", lambda x, win: -_max_pool(-x, win), win)


@builder
def avg_pool(
    window: tuple[int, ...],
    *,
    strides: int | tuple[int, ...] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = False,
) -> Layer:
    """The mean of each window: [..., H, W, C] -> [..., H', W', C].

    - `window`, `strides`, `padding`: as in `max_pool`, the padding with zeros.
    - `count_include_pad`: True divides by the window's size at the border too; False, the
      default, by the number of values of x in the window.

    The sum is formed in float32 or wider. Raises as `max_pool`.

    >>> import jax.numpy as jnp, fnn
    >>> x = jnp.arange(16.0).reshape(4, 4, 1)
    >>> print(fnn.avg_pool((2, 2))({}, x)[..., 0])
    [[ 2.5  4.5]
     [10.5 12.5]]
    """
    average = functools.partial(_avg_pool, count_include_pad=count_include_pad)
    return _pool("avg_pool", average, pool_window(window, strides, padding))


@builder
def sum_pool(
    window: tuple[int, ...],
    *,
    strides: int | tuple[int, ...] | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """The sum of each window: [..., H, W, C] -> [..., H', W', C].

    - `window`, `strides`, `padding`: as in `max_pool`, the padding with zeros.

    The sum is formed in float32 or wider. Raises as `max_pool`.

    >>> import jax.numpy as jnp, fnn
    >>> x = jnp.arange(16.0).reshape(4, 4, 1)
    >>> print(fnn.sum_pool((2, 2))({}, x)[..., 0])
    [[10. 18.]
     [42. 50.]]
    """
    return _pool("sum_pool", _sum_pool, pool_window(window, strides, padding))


def _pool(name: str, pool: Callable, win: windows.Window) -> Layer:
    """The layer of `pool`, a function of [B, H, W, C] and the window."""

    def specs(x):
        windows.check_input(x, win)
        return {}, {}

    def apply(params, state, x, *, key, train):
        y = windows.over_images(lambda x: pool(x, win), x, len(win.size))
        return y.astype(x.dtype), state

    return leaf(name, specs, apply)


def pool_window(window: Any, strides: Any, padding: Any) -> windows.Window:
    """The options of a pool, where every window must hold a value of x."""
    strides = window if strides is None else strides
    win = windows.window("window", window, strides, padding, 1, ("SAME", "VALID"))
    if not isinstance(win.padding, str):
        for size, pair in zip(win.size, win.padding, strict=True):
            if max(pair) >= size:
                raise errors.OptionError(
                    f"padding below the window {win.size}, so that no window lies in it wholly",
                    f"{win.padding}",
                    "pad less, or widen the window",
                )
    return win


def _reduce(x: jax.Array, init: np.ndarray, op: Callable, win: windows.Window) -> jax.Array:
    pads = ((0, 0), *win.pads(x.shape[1:-1]), (0, 0))
    return jax.lax.reduce_window(x, init, op, (1, *win.size, 1), (1, *win.strides, 1), pads)


def _sum_pool(x: jax.Array, win: windows.Window) -> jax.Array:
    values = x.astype(wide(x.dtype))
    return _reduce(values, np.zeros((), values.dtype), jax.lax.add, win)


def _avg_pool(x: jax.Array, win: windows.Window, count_include_pad: bool) -> jax.Array:
    total = _sum_pool(x, win)
    count: Any = np.asarray(math.prod(win.size), total.dtype)
    if not count_include_pad:
        count = _sum_pool(jnp.ones((1, *x.shape[1:-1], 1), total.dtype), win)
    return total / count


def _max_pool(x: jax.Array, win: windows.Window) -> jax.Array:
    def reduced(x):
        return _reduce(x, np.asarray(-np.inf, x.dtype), jax.lax.max, win)

    slices = functools.partial(max_of_slices, win=win)
    if suits_slices(win) and _apart(win):
        return slices(x)
    cpu = slices if suits_slices(win) else reduced
    default = slices if x.dtype == jnp.float64 else reduced  # JAX rounds the tangents of its own
    return jax.lax.platform_dependent(x, cpu=cpu, default=default)


def _apart(win: windows.Window) -> bool:
    """Whether no two windows overlap."""
    return all(stride >= size for stride, size in zip(win.strides, win.size, strict=True))
