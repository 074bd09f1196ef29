"""Convolutions that are one matrix product: of 1 x 1 taps, and of inputs spread apart.

XLA's CPU compiler brings neither into a product (jaxlib 0.10): its convolutions of 1 x 1 take up to
twice as long, and the gradient by the kernel of a convolution over an input with zeros between its
values, as transposed ones are, four to ten times. To be deleted when the rows `conv 1x1` and
`conv_transpose` of benchmarks/tasks/layers.py show the peers, which call XLA's, as fast as fnn.
"""

import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp

from fnn.core.dtypes import widened
from fnn.core.types import Shape
from fnn.layers.conv.convolution import Geometry, pad_spatial, taps_of

LEAST = 16  # channels; with fewer XLA's convolution is as fast
MOST = 128  # taps that are written out


def suits_product(kernel: jax.Array, geometry: Geometry) -> bool:
    """Whether `product` computes this convolution, and faster: every output sees one place."""
    plain = geometry.input_dilation is None and geometry.groups == 1
    return plain and set(kernel.shape[:-2]) <= {1} and kernel.shape[-2] >= LEAST


def product(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`convolution.convolve` of 1 x 1 taps: each place's channels times the kernel."""
    x = pad_spatial(x, [(*pad, 0) for pad in geometry.pads])
    x = jax.lax.slice(x, (0,) * x.ndim, x.shape, (1, *geometry.strides, 1))
    return jnp.matmul(x, kernel.reshape(kernel.shape[-2:]))


def is_spread(kernel: Shape, geometry: Geometry) -> bool:
    """Whether `overlap_add` computes this convolution, of an input with gaps."""
    apart = geometry.input_dilation or (1,)
    plain = geometry.groups == 1 and set(geometry.strides) == {1}
    return max(apart) > 1 and plain and math.prod(kernel[:-2]) <= MOST


def overlap_add(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`convolution.convolve` with gaps: x [B, *spatial, C] times all taps, added where they land.

    With gaps of s, x[p] times the tap that reaches o = s a + r ahead lands on s (p + a) + r. So
    there are s phases r along each axis, each a sum of products shifted by a; they are interleaved
    at the end. Sums are in float32 or wider.
    """
    assert geometry.input_dilation
    gaps, n, dtype = geometry.input_dilation, x.ndim - 2, x.dtype
    spans, offsets = taps_of(kernel.shape[:-2], geometry)
    wide, taps = widened(kernel).reshape(-1, *kernel.shape[-2:]), len(offsets)
    joined = jnp.moveaxis(wide, 0, 1).reshape(kernel.shape[-2], -1)  # [C, K O]
    parts = jax.lax.split(jnp.matmul(widened(x), joined), (kernel.shape[-1],) * taps, axis=-1)

    shifts = [(span - 1) // gap for span, gap in zip(spans, gaps, strict=True)]  # the largest
    phases: dict[tuple[int, ...], list[jax.Array]] = {}
    for at, part in zip(offsets, parts, strict=True):
        ahead = [span - 1 - o for span, o in zip(spans, at, strict=True)]
        by = [o // gap for o, gap in zip(ahead, gaps, strict=True)]
        pads = [(a, most - a, 0) for a, most in zip(by, shifts, strict=True)]
        phase = tuple(o % gap for o, gap in zip(ahead, gaps, strict=True))
        phases.setdefault(phase, []).append(pad_spatial(part, pads))
    nothing = jnp.zeros_like(next(iter(phases.values()))[0])
    every = itertools.product(*map(range, gaps))
    sums = [functools.reduce(operator.add, phases.get(phase, [nothing])) for phase in every]

    size = sums[0].shape  # [B, *spatial, O]
    y = jnp.stack(sums, axis=n + 1).reshape(*size[:-1], *gaps, size[-1])
    order = itertools.chain.from_iterable((1 + i, 1 + n + i) for i in range(n))
    y = jnp.transpose(y, (0, *order, 2 * n + 1))  # [B, H, s, W, s, O]
    y = y.reshape(size[0], *(m * gap for m, gap in zip(size[1:-1], gaps, strict=True)), size[-1])
    cuts = zip(geometry.pads, spans, gaps, shifts, strict=True)
    cut = [(low - span + 1, high + 1 - gap * (a + 1), 0) for (low, high), span, gap, a in cuts]
    return pad_spatial(y, cut).astype(dtype)
