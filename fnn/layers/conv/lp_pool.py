"""The pool between the mean and the maximum."""

import math

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.dtypes import wide
from fnn.core.layer import Layer, leaf
from fnn.core.lengths import divide
from fnn.core.origins import builder
from fnn.layers.conv import windows
from fnn.layers.conv.pool import pool_window
from fnn.layers.conv.windows import Padding


@builder
def lp_pool(
    window: tuple[int, ...],
    p,
    *,
    strides: int | tuple[int, ...] | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """The p-norm of each window, y = (sum |x|^p)^(1/p): [..., H, W, C] -> [..., H', W', C].

    - `window`, `strides`, `padding`: as in `max_pool`, the padding with zeros.
    - `p`: the exponent, at least 1; a traced number is not checked. p = 1 sums, p = 2 is the
      root of the energy, and a large p approaches the maximum (Gulcehre et al., 2014).

    Values are divided by the window's largest first, so that no power overflows, in float32 or
    wider. The gradient of a window of zeros, where the norm has a kink, is zero. Raises
    OptionError, and otherwise as `max_pool`.

    >>> import jax.numpy as jnp, fnn
    >>> x = jnp.array([3.0, -4.0, 0.0, 0.0])[:, None]
    >>> print(fnn.lp_pool((2,), 2)({}, x)[..., 0])
    [5. 0.]
    """
    win = pool_window(window, strides, padding)
    checks.number("p", p, 1.0, float("inf"), open_high=True)

    def specs(x):
        windows.check_input(x, win)
        return {}, {}

    def apply(params, state, x, *, key, train):
        def run(x):  # [B, H, W, C]
            values = x.astype(wide(x.dtype))
            return _norm(_unfold(values, win), jnp.asarray(p).astype(values.dtype))

        return windows.over_images(run, x, len(win.size)).astype(x.dtype), state

    return leaf("lp_pool", specs, apply)


def _unfold(x: jax.Array, win: windows.Window) -> jax.Array:
    """The values of each window, axis by axis: [B, H, W, C] -> [B, H', W', C, K]."""
    x = jnp.pad(x, ((0, 0), *win.pads(x.shape[1:-1]), (0, 0)))
    for axis, (size, stride) in enumerate(zip(win.size, win.strides, strict=True), 1):
        reach = x.shape[axis] - size + 1
        taps = [jax.lax.slice_in_dim(x, k, k + reach, stride, axis) for k in range(size)]
        x = jnp.stack(taps, -1)
    return x.reshape(*x.shape[: len(win.size) + 2], math.prod(win.size))


def _norm(x: jax.Array, p: jax.Array) -> jax.Array:
    """(sum |x|^p)^(1/p) over the last axis."""
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1)
    # y does not depend on what x is divided by, so the scale has no gradient
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    total = jnp.sum(_power(divide(x, scale[..., None]), p), axis=-1)  # in [1, K], or 0, inf, NaN
    zero = total == 0
    return jnp.where(zero, 0, scale * jnp.where(zero, 1, total) ** (1 / p))


@jax.custom_jvp
def _power(x: jax.Array, p: jax.Array) -> jax.Array:
    """|x|^p; at zero it is 1 for p = 0, and 0 for p < 0, which occurs in derivatives.

    Its derivatives are powers again, so they are exact to any order at the zeros that a rectifier
    leaves, where `abs(x) ** p` has a wrong second derivative.
    """
    zero = x == 0
    return jnp.where(zero, (p == 0).astype(x.dtype), jnp.where(zero, 1, jnp.abs(x)) ** p)


@_power.defjvp
def _power_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, p), (dx, dp) = primals, tangents
    y = _power(x, p)
    log = jnp.log(jnp.where(x == 0, 1, jnp.abs(x)))
    return y, p * _signed_power(x, p - 1) * dx + y * log * dp


@jax.custom_jvp
def _signed_power(x: jax.Array, p: jax.Array) -> jax.Array:
    """sign(x) |x|^p."""
    return jnp.sign(x) * _power(x, p)


@_signed_power.defjvp
def _signed_power_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, p), (dx, dp) = primals, tangents
    y = _signed_power(x, p)
    log = jnp.log(jnp.where(x == 0, 1, jnp.abs(x)))
    return y, p * _power(x, p - 1) * dx + y * log * dp
