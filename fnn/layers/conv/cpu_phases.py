"""Convolutions of an image with gaps, phase by phase, without the zeros in them.

A transposed convolution, and the gradient by the image of a strided one, convolve an image with
s - 1 zeros between its values. By XLA's CPU compiler (jaxlib 0.10) this takes up to twice as long
as without the zeros, and its transpose by the kernel, if the image is large, 6 to 20 times. But the
outputs s apart, a phase, meet the same taps of the kernel, every s-th one: each phase is a plain
convolution of the image without gaps, and the phases interleave. To be deleted when the row
`conv_transpose` of benchmarks/tasks/layers.py shows the peers, which call XLA's, as fast as fnn.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core.types import Shape
from fnn.layers.conv import windows
from fnn.layers.conv.convolution import Geometry
from fnn.layers.conv.cpu_rows import by_rows

MOST = 64  # phases that are written out
LEAST = 4  # features; for fewer XLA's own is as fast
CACHE = 4 << 20  # bytes of patches up to which a product with them is faster by the kernel


class _Phase(NamedTuple):
    """What one phase of an axis sees: taps first, first + step ..., and zeros around the image."""

    first: int
    step: int
    pad: tuple[int, int]
    dilation: int


def suits_phases(kernel: Shape, geometry: Geometry) -> bool:
    """Whether `by_phases` computes this convolution, and is the faster."""
    return 1 < geometry.phases <= MOST and kernel[-1] >= LEAST and 0 not in kernel


def suits_phases_by_kernel(image: Shape, kernel: Shape, geometry: Geometry) -> bool:
    """Whether its transpose by the kernel is faster by phases too, and not by patches."""
    sizes, taps = (*image[:-1], *kernel), math.prod(kernel[:-2])
    if not suits_phases(kernel, geometry) or not all(isinstance(n, int) for n in sizes):
        return False
    large = 4 * math.prod(image[:-1]) * taps * kernel[-1] > CACHE
    return large and taps > geometry.phases


def by_phases(
    x: jax.Array, kernel: jax.Array, geometry: Geometry, run: Callable[..., jax.Array] = by_rows
) -> jax.Array:
    """`convolve` of x [B, *spatial, C] with gaps, `geometry.input_dilation`: [B, *spatial', O].

    `run` computes each phase, as `convolve` does.
    """
    apart = geometry.input_dilation
    assert apart
    each = x.shape[1:-1], kernel.shape[:-2], geometry.pads, geometry.dilation, apart
    sizes, counts, phases = zip(*itertools.starmap(_phases, zip(*each, strict=True)), strict=True)

    def image(at):
        chosen = [of_axis[i] for of_axis, i in zip(phases, at, strict=True)]
        if None in chosen:  # no tap meets a value
            return jnp.zeros((x.shape[0], *counts, kernel.shape[-1]), x.dtype)
        taps = kernel[tuple(slice(phase.first, None, phase.step) for phase in chosen)]
        pads, dilation = (tuple(getattr(p, name) for p in chosen) for name in ("pad", "dilation"))
        one = Geometry((1,) * len(chosen), pads, dilation, weight_grad=geometry.weight_grad)
        return run(x, taps, one)

    return windows.interleaved(image, apart, sizes)


def _phases(
    inputs: int, taps: int, pad: tuple[int, int], dilation: int, apart: int
) -> tuple[int, int, list[_Phase | None]]:
    """How many outputs an axis has, how many at most in a phase, and what each phase sees.

    Output r + q s meets tap k at the value q + (r + k d - low) / s, where that is whole.
    """
    low, high = pad
    beyond = low + high - (taps - 1) * dilation + 1 - apart  # of inputs * apart outputs
    more, common = -(-beyond // apart), math.gcd(apart, dilation)
    step, phases = apart // common, []
    for r in range(apart):
        met = [k for k in range(min(step, taps)) if (r + k * dilation - low) % apart == 0]
        if not met:
            phases.append(None)
            continue
        (first,) = met
        start = (r + first * dilation - low) // apart  # of the values that the first output meets
        reach = ((taps - 1 - first) // step) * (dilation // common)
        pads = -start, more + reach + start
        phases.append(_Phase(first, step, pads, dilation // common))
    return inputs * apart + beyond, inputs + more, phases
