"""Convolutions on which XLA's CPU compiler aborts; to be deleted when test_cpu_abort.py passes
without it.

XLA exchanges a convolution's image and kernel where the second is the larger, except along axes
that it takes for groups by how far apart inputs and outputs are. Where an axis only looks like
groups, having other than as many inputs as taps, a check in XLA fails: in jaxlib 0.10 to 0.12, with
JAX's own gradients too.
"""

import math

import jax

from fnn.layers.conv.convolution import Geometry

Axis = tuple[int, int, bool]  # inputs, taps, and whether it looks like groups


def aborts_on_cpu(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> bool:
    """Whether compiling this convolution, or a derivative of it of any order, aborts.

    Any two of the image i, the kernel k and the output o make the third, by a convolution: six.
    """
    sizes = (*x.shape[1:-1], *kernel.shape[:-2])
    if geometry.groups > 1 or not all(isinstance(size, int) for size in sizes):
        return False
    _, pads, dilation, _, input_dilation, _ = geometry
    apart = input_dilation or (1,) * len(pads)
    each = x.shape[1:], kernel.shape, pads, dilation, apart, geometry.strides
    convolutions: list[list[Axis]] = [[] for _ in range(6)]
    for inputs, taps, (low, high), dilated, gap, stride in zip(*each, strict=False):
        wide, reach = (inputs - 1) * gap, (taps - 1) * dilated
        outputs = (wide + low + high - reach) // stride + 1
        across = (outputs - 1) * stride
        i, k, o = (inputs, gap, wide), (taps, dilated, reach), (outputs, stride, across)
        forms = [(i, k, o, low), (i, o, k, low), (o, k, i, reach - low)]
        forms += [(o, i, k, reach - low), (k, o, i, across - low), (k, i, o, across - low)]
        for axes, (a, b, c, before) in zip(convolutions, forms, strict=True):
            after = high if axes is convolutions[0] else b[2] + c[2] - a[2] - before
            looks = (a[1], c[1], b[1], before, after) == (b[0], b[0] - 1, 1, 0, 0)
            axes.append((a[0], b[0], looks))
    return any(map(_looks_wrong, convolutions))


def _looks_wrong(axes: list[Axis]) -> bool:
    others = [(inputs, taps) for inputs, taps, looks in axes if not looks]
    inputs, taps = (math.prod(sizes) for sizes in zip(*others, strict=True)) if others else (1, 1)
    return inputs < taps and any(looks and inputs != taps for inputs, taps, looks in axes)
