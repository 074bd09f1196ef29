"""What a convolution computes, in the textbook's two forms: XLA's, and a product with patches."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.layers.conv import windows
from fnn.layers.cpu_matmul import matmul


class Geometry(NamedTuple):
    """The static part of a convolution, for images of known size."""

    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    input_dilation: tuple[int, ...] | None = None  # a transposed convolution's strides
    weight_grad: str = "conv"

    @property
    def phases(self) -> int:
        """How many phases an image with zeros between its values has; 1 without, or if the
        convolution has strides or groups too."""
        plain = self.groups == 1 and set(self.strides) == {1}
        return math.prod(self.input_dilation or ()) if plain else 1


def convolve(x: jax.Array, kernel: jax.Array, geometry: Geometry, axes: Any = None) -> jax.Array:
    """x [B, *spatial, C] and a kernel [*size, C / groups, O] -> [B, *spatial, O]: the textbook's.

    `axes`: another order of them, as in `jax.lax.conv_general_dilated`.
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.pads,
        lhs_dilation=geometry.input_dilation,
        rhs_dilation=geometry.dilation,
        feature_group_count=geometry.groups,
        dimension_numbers=axes or channels_last(x.ndim - 2),
    )


def channels_last(n: int, outputs_first: bool = False) -> jax.lax.ConvDimensionNumbers:
    """The order [B, *spatial, C], [*size, C, O] (or [*size, O, C]), [B, *spatial, O]."""
    image = (0, n + 1, *range(1, n + 1))
    last = (n, n + 1) if outputs_first else (n + 1, n)
    return jax.lax.ConvDimensionNumbers(image, (*last, *range(n)), image)


def by_patches(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`convolve` as a product of the kernel with the patches of x."""
    patches = patches_of(x, kernel.shape[:-2], geometry)  # [B, *spatial, K, C]
    *lead, taps, channels = patches.shape
    groups = geometry.groups
    if groups == 1:  # as two matrices, which XLA multiplies faster
        flat = kernel.reshape(taps * channels, -1)
        return matmul(patches.reshape(*lead, taps * channels), flat)
    patches = patches.reshape(*lead, taps, groups, channels // groups)
    split = (channels // groups, groups, kernel.shape[-1] // groups)
    products = jnp.einsum("...kgc,kcgo->...go", patches, kernel.reshape(taps, *split))
    return products.reshape(*lead, kernel.shape[-1])


def patches_of(x: jax.Array, size: tuple[int, ...], geometry: Geometry) -> jax.Array:
    """The inputs under each of the kernel's taps: [B, *spatial, K, C]."""
    apart = geometry.input_dilation or (1,) * len(size)
    pads = [(*pad, d - 1) for pad, d in zip(geometry.pads, apart, strict=True)]
    x, (spans, offsets) = pad_spatial(x, pads), taps_of(size, geometry)
    return jnp.stack([windows.strided(x, at, spans, geometry.strides) for at in offsets], axis=-2)


def taps_of(
    size: tuple[int, ...], geometry: Geometry
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """How far a kernel reaches along each axis, and where in that range each of its taps lies."""
    spans = tuple((k - 1) * d + 1 for k, d in zip(size, geometry.dilation, strict=True))
    axes = (range(0, span, d) for span, d in zip(spans, geometry.dilation, strict=True))
    return spans, list(itertools.product(*axes))


def pad_spatial(x: jax.Array, pads: Sequence[tuple[int, int, int]]) -> jax.Array:
    """Zeros before, after and between the values of each spatial axis of [B, *spatial, C]."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
