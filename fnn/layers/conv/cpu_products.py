"""Convolutions that are matrix products: of 1 x 1 taps, and by the kernel for an image with gaps.

XLA's CPU compiler brings neither into a product (jaxlib 0.10): its convolutions of 1 x 1 take up to
twice as long, and the gradient by the kernel of a convolution over an image with zeros between its
values, as transposed ones are, two to twenty times. To be deleted when the rows `conv 1x1` and
`conv_transpose` of benchmarks/tasks/layers.py show the peers, which call XLA's, as fast as fnn.
"""

import math

import jax
import jax.numpy as jnp

from fnn.core.dtypes import widened
from fnn.core.types import Shape
from fnn.layers.conv.convolution import Geometry, patches_of, taps_of

LEAST = 16  # channels; with fewer XLA's convolution is as fast
MOST = 128  # taps that are written out


def suits_product(kernel: jax.Array, geometry: Geometry) -> bool:
    """Whether a 1 x 1 convolution is faster by `convolution.by_patches`, which is one product."""
    plain = geometry.input_dilation is None and geometry.groups == 1
    return plain and set(kernel.shape[:-2]) <= {1} and kernel.shape[-2] >= LEAST


def has_gaps(kernel: Shape, geometry: Geometry) -> bool:
    """Whether `kernel_by_patches` transposes this convolution, of an image with gaps."""
    return geometry.phases > 1 and math.prod(kernel[:-2]) <= MOST


def kernel_by_patches(y: jax.Array, x: jax.Array, kernel: Shape, geometry: Geometry) -> jax.Array:
    """The transpose by the kernel of a convolution with gaps: x times what each tap sees of y.

    x [B, *spatial, C] is spread over y's image [B, *spatial', O], so that the patches of y under
    the turned kernel, in strides as wide as the gaps, are as many as the places of x.
    """
    assert geometry.input_dilation
    spans, _ = taps_of(kernel[:-2], geometry)
    each = zip(geometry.pads, spans, strict=True)
    pads = tuple((span - 1 - low, span - 1 - high) for (low, high), span in each)
    back = Geometry(geometry.input_dilation, pads, geometry.dilation)
    patches = patches_of(widened(y), kernel[:-2], back)  # [B, *spatial, K, O]
    turned = jnp.einsum("...c,...ko->kco", widened(x), patches).reshape(kernel)
    return jnp.flip(turned, range(len(spans))).astype(y.dtype)
