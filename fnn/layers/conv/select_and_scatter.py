"""The maximum over windows as that of slices: on CPU, and in 64 bits off CPU.

XLA's gradient of `reduce_window`, a select-and-scatter, takes several times as long on CPU (jaxlib
0.10). To be deleted when the rows `max_pool` and `max_pool overlapping` of
benchmarks/tasks/layers.py show the floor, which is `reduce_window`, as fast as fnn. Off CPU, JAX
rounds the tangents of overlapping windows in float64 to 32 bits, with a warning (JAX 0.11).
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core.dtypes import widened
from fnn.layers.conv import windows
from fnn.layers.conv.derivatives import with_transpose

MOST = 32  # places of a window that are written out; of a larger one, those along each axis
LONGEST = 128  # places along an axis that are written out


def suits_slices(win: windows.Window) -> bool:
    """Whether the program of `max_of_slices` stays short."""
    return max(win.size) <= LONGEST


def max_of_slices(x: jax.Array, win: windows.Window) -> jax.Array:
    """The largest value in each window, minus infinity in the padding: `reduce_window`'s."""
    pads = win.pads(x.shape[1:-1])
    inside = None
    if any(low or high for low, high in pads):
        inside = jnp.pad(jnp.ones((1, *x.shape[1:-1], 1), bool), ((0, 0), *pads, (0, 0)))
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    for stage in _stages(win):
        x = _largest(x, inside, stage)
        if inside is not None:
            inside = functools.reduce(jnp.logical_or, _slices(inside, stage))
    return x


def _stages(win: windows.Window) -> list[windows.Window]:
    """The window itself; a large one as one window per axis, the last axis first.

    The program then grows with the sum of the sizes and not with their product. The first maximum
    in row-major order stays the same; only where a window holds NaN may the gradient go elsewhere.
    """
    n = len(win.size)
    if math.prod(win.size) <= MOST:
        return [win._replace(padding="VALID")]
    ones = (1,) * n
    return [
        windows.Window(
            (*ones[:axis], win.size[axis], *ones[axis + 1 :]),
            (*ones[:axis], win.strides[axis], *ones[axis + 1 :]),
            ones,
            "VALID",
        )
        for axis in reversed(range(n))
    ]


def _slices(x: jax.Array, win: windows.Window) -> list[jax.Array]:
    """The values at each place of the window, in row-major order: K arrays [B, H', W', C]."""
    offsets = itertools.product(*map(range, win.size))
    return [windows.strided(x, offset, win.spans, win.strides) for offset in offsets]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _largest(x: jax.Array, inside: jax.Array | None, win: windows.Window) -> jax.Array:
    """The largest value in each window; `inside` marks what is not padding."""
    return functools.reduce(jnp.maximum, _slices(x, win))


@_largest.defjvp
def _largest_jvp(win: windows.Window, primals: tuple, tangents: tuple) -> tuple:
    (x, inside), (dx, _) = primals, tangents
    chosen = _chosen(x, inside, win)
    there = functools.partial(_taken, chosen=chosen, win=win)
    back = functools.partial(_given_back, chosen=chosen, win=win, spatial=x.shape[1:-1])
    return _largest(x, inside, win), with_transpose(there, back, dx)


def _chosen(x: jax.Array, inside: jax.Array | None, win: windows.Window) -> jax.Array:
    """The number of the first largest value in each window.

    The order of comparisons is that of select-and-scatter: a value stays chosen while it is >= the
    next one, and padding is never chosen before a value of x.
    """
    values = _slices(x, win)
    marks = None if inside is None else _slices(inside, win)
    largest, found = values[0], None if marks is None else marks[0]
    number = np.min_scalar_type(len(values)).type
    chosen = jnp.zeros(largest.shape, number)
    for i in range(1, len(values)):
        stays = largest >= values[i]
        if marks is not None and found is not None:
            stays = (stays & found) | ~marks[i]
            found = found | marks[i]
        largest = jnp.where(stays, largest, values[i])
        chosen = jnp.where(stays, chosen, number(i))
    return chosen


def _taken(x: jax.Array, chosen: jax.Array, win: windows.Window) -> jax.Array:
    """The value of x that was chosen in each window."""
    values = _slices(x, win)
    taken = values[0]
    for i, value in enumerate(values[1:], 1):
        taken = jnp.where(chosen == i, value, taken)
    return taken


def _given_back(y: jax.Array, chosen: jax.Array, win: windows.Window, spatial: tuple) -> jax.Array:
    """The transpose of `_taken`: each value of y at the place that was chosen in its window.

    Places that differ by a multiple of the strides are one image, the sum of y's values shifted and
    masked; these images are then interleaved. So all is read and written in rows of channels, and
    y's values are added in float32 or wider.
    """
    n, strides = len(spatial), win.strides
    sizes = [-(-size // stride) for size, stride in zip(spatial, strides, strict=True)]
    reach = [(size - 1) // stride for size, stride in zip(win.size, strides, strict=True)]
    spans = [most + 1 for most in reach]
    axes = zip(reach, sizes, y.shape[1:-1], strict=True)
    pads = [(0, 0), *((most, size - count) for most, size, count in axes), (0, 0)]
    wide, chosen = jnp.pad(widened(y), pads), jnp.pad(chosen, pads)

    def image(first):  # of the places first, first + strides, ...
        total = jnp.zeros((y.shape[0], *sizes, y.shape[-1]), wide.dtype)
        for place in itertools.product(*map(range, first, win.size, strides)):
            each = zip(place, strides, reach, strict=True)
            offset = [most - at // stride for at, stride, most in each]
            here, values = (windows.strided(a, offset, spans, (1,) * n) for a in (chosen, wide))
            total += jnp.where(here == int(np.ravel_multi_index(place, win.size)), values, 0)
        return total

    return windows.interleaved(image, strides, spatial).astype(y.dtype)
