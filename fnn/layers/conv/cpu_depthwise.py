"""The convolution of each channel alone, tap by tap.

XLA's CPU compiler has no fast convolution in groups, but good loops over products (jaxlib 0.10). To
be deleted when the row `depthwise_conv` of benchmarks/tasks/layers.py shows the peers, which call
XLA's, as fast as fnn.
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp

from fnn.core.dtypes import widened
from fnn.layers.conv.convolution import Geometry, pad_spatial, taps_of
from fnn.layers.conv.derivatives import differentiate

MOST = 128  # taps that are written out


def suits_taps(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> bool:
    """Whether `by_tap` computes this convolution, and is the faster on CPU."""
    few = math.prod(kernel.shape[:-2]) <= MOST and geometry.weight_grad == "conv"
    return few and 1 < geometry.groups == x.shape[-1] and geometry.input_dilation is None


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def by_tap(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """x [B, *spatial, C] times the kernel [*size, 1, C m], tap by tap, summed in float32 or wider.

    The sum is one expression, and so one loop over y. It stands in a branch of a condition, since
    the compiler would compute it again wherever y is read, such as three times in a batch norm.
    """
    padded, values, under, offsets = _parts(x, kernel, geometry)

    def total(padded, values):
        products = (under(padded, at) * value for at, value in zip(offsets, values, strict=True))
        return functools.reduce(operator.add, products)

    def never(padded, values):
        return jnp.zeros_like(under(padded, offsets[0]))

    return jax.lax.cond(_always(), total, never, padded, values).astype(x.dtype)


def _in_turn(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`by_tap`, linear in the kernel: its transpose is a sum for each tap.

    The taps are added in turn: the transpose of one expression would take more than twice as long.
    """
    padded, values, under, offsets = _parts(x, kernel, geometry)

    @jax.checkpoint  # or reverse mode would keep what lies under each tap
    def add(y, tap):
        at, value = tap
        return y + under(padded, at) * value, None

    start = jnp.zeros_like(under(padded, offsets[0]))
    return jax.lax.scan(add, start, (jnp.asarray(offsets), values))[0].astype(x.dtype)


def _spread(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`by_tap`, linear in x: its transpose reads slices, and adds no padded ones."""
    spans, offsets = taps_of(kernel.shape[:-2], geometry)
    dtype, (x, values) = x.dtype, _per_channel(x, kernel)
    products = (
        pad_spatial(x * value, [(span - 1 - a, a, 0) for span, a in zip(spans, at, strict=True)])
        for at, value in zip(offsets, values, strict=True)
    )
    everywhere = functools.reduce(operator.add, products)  # that the kernel touches x at all
    pads = zip(geometry.pads, spans, strict=True)
    y = pad_spatial(
        everywhere, [(low - span + 1, high - span + 1, 0) for (low, high), span in pads]
    )
    return _every(y, geometry.strides).astype(dtype)


differentiate(by_tap, _spread, _in_turn)


def _always() -> jax.Array:
    """True, which the compiler does not find out."""
    return jax.lax.fori_loop(0, 2, lambda i, count: count + 1, 0) > 0


def _parts(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> tuple:
    """x padded, the kernel by tap, what lies under a tap at an offset, and all offsets."""
    spans, offsets = taps_of(kernel.shape[:-2], geometry)
    wide, values = _per_channel(x, kernel)
    padded = pad_spatial(wide, [(*pad, 0) for pad in geometry.pads])
    sizes = [n - span + 1 for n, span in zip(padded.shape[1:-1], spans, strict=True)]

    def under(padded, at):
        shape = (padded.shape[0], *sizes, padded.shape[-1])
        here = jax.lax.dynamic_slice(padded, (0, *at, 0), shape)
        return _every(here, geometry.strides)

    return padded, values, under, offsets


def _every(x: jax.Array, strides: tuple[int, ...]) -> jax.Array:
    """The first of every so many values along each spatial axis of [B, *spatial, C]."""
    return jax.lax.slice(x, (0,) * x.ndim, x.shape, (1, *strides, 1))


def _per_channel(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What each output channel sees [B, *spatial, C m], its kernel [K, 1, *ones, C m]; wide."""
    values = kernel.reshape(-1, *(1,) * (x.ndim - 1), kernel.shape[-1])
    return jnp.repeat(widened(x), kernel.shape[-1] // x.shape[-1], axis=-1), widened(values)
