"""A convolution in the order of axes that is fast inside a loop, in every derivative.

XLA's CPU compiler has a fast convolution for one order of axes, that of `convolution.convolve`. It
brings others into that order in the outermost program only, not in the body of a `scan`, where they
take many times as long; and JAX transposes a convolution into another order. So in jaxlib 0.10.

But any two of the image x, the kernel and the output y make the third, by a convolution linear in
both, and its transpose in one of the two makes that one of the others. Here all three are in the
fast order and derive from each other, so every derivative of any order is fast, in every mode.

To be deleted when the row `floor` of benchmarks/tasks/scan.py, JAX's own gradient, takes the time
of the row `fnn`; the rows `conv` of scan_layers.py would then show it too.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core.types import Shape
from fnn.layers.conv.convolution import Geometry, by_patches, channels_last, convolve
from fnn.layers.conv.cpu_phases import by_phases, suits_phases, suits_phases_by_kernel
from fnn.layers.conv.cpu_products import has_gaps, kernel_by_patches
from fnn.layers.conv.cpu_rows import by_rows, cut
from fnn.layers.conv.derivatives import differentiate, with_transpose


class _Form(NamedTuple):
    geometry: Geometry
    image: Shape  # [B, *spatial, C]
    kernel: Shape  # [*size, C / groups, O]


def in_fast_order(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`convolve`, all of whose derivatives are convolutions in its own order of axes."""
    return _output(x, kernel, _Form(geometry, x.shape, kernel.shape))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _output(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
    if suits_phases(kernel.shape, form.geometry):
        return by_phases(x, kernel, form.geometry)
    return by_rows(x, kernel, form.geometry)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _image(kernel: jax.Array, y: jax.Array, form: _Form) -> jax.Array:
    turned = jnp.swapaxes(kernel, -1, -2)
    back = _back(form)
    in_phases = back and suits_phases(turned.shape, back)
    if back and (in_phases or cut(y.shape, turned.shape, back) != (1, 1)):
        flipped = jnp.flip(turned, range(kernel.ndim - 2))
        return (by_phases if in_phases else by_rows)(y, flipped, back)
    axes = channels_last(kernel.ndim - 2, outputs_first=True)
    forward = partial(convolve, kernel=turned, geometry=form.geometry, axes=axes)
    return _transposed(forward, form.image, y)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kernel(y: jax.Array, x: jax.Array, form: _Form) -> jax.Array:
    """In groups no convolution is fast, nor for an image with gaps: there it is a product, or one
    for each phase."""
    geometry = form.geometry
    if geometry.groups > 1 or geometry.weight_grad == "matmul":
        forward = partial(by_patches, x, geometry=geometry)
    elif suits_phases_by_kernel(form.image, form.kernel, geometry):
        forward = partial(by_phases, x, geometry=geometry, run=_batch_last)
    elif has_gaps(form.kernel, geometry):
        return kernel_by_patches(y, x, form.kernel, geometry)
    else:
        forward = partial(_batch_last, x, geometry=geometry)
    return _transposed(forward, form.kernel, y)


def _back(form: _Form) -> Geometry | None:
    """The convolution from y's image to x's by the flipped kernel, if x's image has no gaps."""
    geometry = form.geometry
    if geometry.input_dilation is not None:
        return None
    apart = None if set(geometry.strides) == {1} else geometry.strides
    pads = []
    each = form.image[1:-1], form.kernel[:-2], geometry.strides, geometry.pads, geometry.dilation
    for size, taps, stride, (low, high), dilation in zip(*each, strict=True):
        reach = (taps - 1) * dilation
        across = (size + low + high - reach - 1) // stride * stride  # from first to last output
        pads.append((reach - low, size - 1 - across + low))
    back = geometry._replace(strides=(1,) * len(pads), pads=tuple(pads))
    return back._replace(input_dilation=apart)


def _transposed(linear: Callable[..., jax.Array], shape: Shape, y: jax.Array) -> jax.Array:
    return jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, y.dtype))(y)[0]


def _derive(third: Callable, first: Callable, second: Callable) -> None:
    """c = third(a, b), a = first(b, c) and b = second(c, a) are each other's transposes."""

    def in_a(da, b, form):
        def run(da):
            return third(da, b, form)

        return with_transpose(run, lambda dc: first(b, dc, form), da)

    def in_b(a, db, form):
        def run(db):
            return third(a, db, form)

        return with_transpose(run, lambda dc: second(dc, a, form), db)

    # under jit, the linear maps are traced once for all convolutions of one form
    differentiate(third, jax.jit(in_a, static_argnums=2), jax.jit(in_b, static_argnums=2))


_derive(_output, _image, _kernel)
_derive(_image, _kernel, _output)
_derive(_kernel, _output, _image)


def _batch_last(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`convolve` without groups, in the order of axes that is transposed into the fast one."""
    n = x.ndim - 2
    first_last = (n + 1, 0, *range(1, n + 1))  # (B or O, C, *spatial) of C .. B and C .. O
    axes = jax.lax.ConvDimensionNumbers(first_last, first_last, (n, n + 1, *range(n)))
    x = jnp.swapaxes(x, 0, -1)  # [C, H, W, B]
    y = convolve(x, jnp.moveaxis(kernel, -2, 0), geometry, axes)  # with [C, kh, kw, O]
    return jnp.moveaxis(y, -2, 0)  # [H', W', B, O] to [B, H', W', O]
