"""The maximum over windows as that of slices: on CPU if they do not overlap; in 64 bits off CPU.

XLA's gradient of `reduce_window`, a select-and-scatter, takes several times as long on CPU (jaxlib
0.10). To be deleted when the row `max_pool` of benchmarks/tasks/layers.py shows the floor, which is
`reduce_window`, as fast as fnn. Off CPU, JAX rounds the tangents of overlapping windows in float64
to 32 bits, with a warning (JAX 0.11).
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp

from fnn.layers.conv import windows


def max_of_slices(x: jax.Array, win: windows.Window) -> jax.Array:
    """The largest value in each window, minus infinity in the padding: `reduce_window`'s."""
    pads = win.pads(x.shape[1:-1])
    inside = None
    if any(low or high for low, high in pads):
        inside = jnp.pad(jnp.ones((1, *x.shape[1:-1], 1), bool), ((0, 0), *pads, (0, 0)))
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    for stage in _stages(win):
        marks = None if inside is None else _slices(inside, stage)
        x = _largest(_slices(x, stage), marks)
        inside = None if marks is None else functools.reduce(jnp.logical_or, marks)
    return x


def _stages(win: windows.Window) -> list[windows.Window]:
    """The window itself; a large one as one window per axis, the last axis first.

    The program then grows with the sum of the sizes and not with their product. The first maximum
    in row-major order stays the same; only where a window holds NaN may the gradient go elsewhere.
    """
    n = len(win.size)
    if math.prod(win.size) <= 32:
        return [win]
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


@jax.custom_jvp
def _largest(taps: list[jax.Array], inside: list[jax.Array] | None) -> jax.Array:
    """The elementwise maximum of the taps; `inside` marks those that are not padding."""
    return functools.reduce(jnp.maximum, taps)


@_largest.defjvp
def _largest_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """The tangent of the first largest tap: linear, and its transpose is masks and sums.

    The order of comparisons is that of select-and-scatter: a tap stays chosen while it is >= the
    next one, and padding is never chosen before a value of x.
    """
    (taps, inside), (dtaps, _) = primals, tangents
    chosen, tangent = taps[0], dtaps[0]
    found = None if inside is None else inside[0]
    for i in range(1, len(taps)):
        stays = chosen >= taps[i]
        if found is not None and inside is not None:
            stays = (stays & found) | ~inside[i]
            found = found | inside[i]
        chosen = jnp.where(stays, chosen, taps[i])
        tangent = jnp.where(stays, tangent, dtaps[i])
    return _largest(taps, inside), tangent
