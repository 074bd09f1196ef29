"""A convolution whose rows are long enough for all cores.

XLA's CPU compiler (jaxlib 0.10, no longer 0.11) divides a convolution among cores along the rows of
the image alone, and a row of little work not at all: with 64 channels and 3 x 3 taps it runs on one
core if a row has less than a hundred places. So here several images, or strips of one, lie side by
side in a row, with the zeros of their padding between them; not where there are several devices,
over which the images may be cut. To be deleted with jaxlib 0.10; until then the row `alone` of
benchmarks/tasks/conv_rows.py shows what it saves.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core.types import Shape
from fnn.layers.conv.convolution import Geometry, convolve, pad_spatial

ONE_CORE = jax.__version_info__ < (0, 11)
ROW = 5 << 17  # products of a row's places, inputs and outputs; XLA then divides it
CHANNELS = 16  # with no more, in and out, XLA divides all
FEATURES = 64  # with more, XLA divides most
WORK = 1 << 25  # products in all; the copies of less take as long as they save


class _Axis(NamedTuple):
    size: int  # of the image
    reach: int  # of the kernel
    stride: int
    low: int  # zeros before the image
    out: int

    @property
    def extent(self) -> int:
        """From the first value that an output meets to the last, zeros included."""
        return (self.out - 1) * self.stride + self.reach


def by_rows(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`convolve` of x [B, *spatial, C], in longer rows where these are faster."""
    images, strips = cut(x.shape, kernel.shape, geometry)
    if images * strips == 1:
        return convolve(x, kernel, geometry)
    batch = x.shape[0]
    rows = batch // images
    y = _rows(x[: rows * images], kernel, geometry, (rows, images), strips)
    if rows * images == batch:
        return y
    return jnp.concatenate([y, convolve(x[rows * images :], kernel, geometry)])


def cut(image: Shape, kernel: Shape, geometry: Geometry) -> tuple[int, int]:
    """How many images lie side by side, and how many strips of each; 1 and 1 if none should.

    A power of two of a batch whose size is unknown, as in an export.
    """
    batch, channels, features = image[0], *kernel[-2:]
    sizes = *image[1:], *kernel
    plain = geometry.groups == 1 and geometry.input_dilation is None
    plain &= geometry.weight_grad == "conv"  # the other is not for CPUs alone
    if not (ONE_CORE and plain and all(isinstance(n, int) for n in sizes)):
        return 1, 1
    if jax.device_count() > 1:
        return 1, 1
    if 0 in (batch, *sizes) or min(min(pads) for pads in geometry.pads) < 0:
        return 1, 1
    first, *_ = axes = _axes(image, kernel, geometry)
    if min(axis.out for axis in axes) < 1:
        return 1, 1
    most = max(first.out // (2 * first.reach), 1) if len(axes) > 1 else 1  # thin strips share much
    pieces = [n for n in range(1, most + 1) if first.out % n == 0]
    wanted = math.ceil(ROW / (channels * features * axes[-1].out))
    if isinstance(batch, int):
        images = next((n for n in range(wanted, batch) if batch % n == 0), batch)
    else:
        batch = images = 1 << (math.ceil(wanted / pieces[-1]) - 1).bit_length()
    work = math.prod(axis.out for axis in axes) * math.prod(kernel) * batch
    few = channels < CHANNELS or channels * features <= CHANNELS**2
    if few or features > FEATURES or work < WORK:
        return 1, 1
    strips = next((n for n in pieces if n * images >= wanted), 0)
    return (images, strips) if strips else (1, 1)


def _axes(image: Shape, kernel: Shape, geometry: Geometry) -> list[_Axis]:
    each = image[1:-1], kernel[:-2], geometry.strides, geometry.dilation, geometry.pads
    axes = []
    for size, taps, stride, dilation, (low, high) in zip(*each, strict=True):
        reach = (taps - 1) * dilation + 1
        out = (size + low + high - reach) // stride + 1
        axes.append(_Axis(size, reach, stride, low, out))
    return axes


def _rows(
    x: jax.Array, kernel: jax.Array, geometry: Geometry, split: tuple[int, int], strips: int
) -> jax.Array:
    """`convolve` of x [rows * images, ...] in rows of so many images, each in strips."""
    rows, images = split
    first, *_ = axes = _axes(x.shape, kernel.shape, geometry)
    if strips > 1:
        x = _strips(x, first, strips)
        geometry = geometry._replace(pads=((0, 0), *geometry.pads[1:]))
    y = _side_by_side(x, kernel, geometry, axes[-1], (rows, images * strips))
    return y.reshape(rows * images, *(axis.out for axis in axes), kernel.shape[-1])


def _strips(x: jax.Array, axis: _Axis, strips: int) -> jax.Array:
    """x [B, H, ...] as [B strips, H', ...], each with the rows that its outputs meet."""
    high = max(axis.extent - axis.low - axis.size, 0)
    x = pad_spatial(x, [(axis.low, high, 0), *[(0, 0, 0)] * (x.ndim - 3)])
    each = axis._replace(out=axis.out // strips)
    starts = range(0, axis.out * axis.stride, each.out * axis.stride)
    parts = [jax.lax.slice_in_dim(x, at, at + each.extent, axis=1) for at in starts]
    return jnp.stack(parts, 1).reshape(x.shape[0] * strips, *parts[0].shape[1:])


def _side_by_side(
    x: jax.Array, kernel: jax.Array, geometry: Geometry, axis: _Axis, split: tuple[int, int]
) -> jax.Array:
    """`convolve` of [rows * n, ..., W, C] as of [rows, ..., n * W', C]."""
    size, reach, stride, low, out = axis
    places = max(size + low, axis.extent - low, out * stride)  # no output meets two images
    pitch = math.ceil(places / stride)  # outputs from one image to the next
    last, (rows, n) = x.ndim - 2, split
    gaps = [(0, 0, 0)] * (last - 1) + [(0, pitch * stride - size, 0)]
    x = pad_spatial(x, gaps)
    x = jnp.moveaxis(x.reshape(rows, n, *x.shape[1:]), 1, last)  # [rows, ..., n, W', C]
    x = x.reshape(*x.shape[:last], n * pitch * stride, x.shape[-1])
    pads = (*geometry.pads[:-1], (low, max(reach - stride - low, 0)))
    y = convolve(x, kernel, geometry._replace(pads=pads))
    y = jax.lax.slice_in_dim(y, 0, n * pitch, axis=last)
    y = y.reshape(*y.shape[:last], n, pitch, y.shape[-1])
    return jnp.moveaxis(jax.lax.slice_in_dim(y, 0, out, axis=last + 1), last, 1)
