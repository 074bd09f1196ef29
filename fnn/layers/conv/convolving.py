"""The arithmetic of convolutions, each written as XLA computes it fast."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.layers.conv.taps import How, by_tap, differentiate, patches_of, suits_taps
from fnn.layers.conv.transposes import with_transpose


def convolve(x: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """A convolution, as XLA computes it; but otherwise where on CPU it is slow, or aborts."""
    if _misread(x, kernel, how):
        return _by_patches(x, kernel, how)
    fast = functools.partial(by_tap if suits_taps(x, kernel, how) else _by_xla, how=how)
    plain = functools.partial(_by_xla if how.weight_grad == "matmul" else _convolve, how=how)
    return jax.lax.platform_dependent(x, kernel, cpu=fast, default=plain)


# --- as XLA does it
#
# XLA's CPU compiler has a fast convolution for one order of axes, that of `_convolve`, and brings
# others into it in the outermost program alone, not in the body of a `scan`, where they run many
# times as long; and JAX transposes a convolution into another order. But of the image x, the kernel
# and the output y any two make the third, by a convolution linear in both, and its transpose in
# one of the two makes that of the others. So all three stand here in the fast order, and derive
# from each other: every derivative of any order is fast, in every mode.


class _Form(NamedTuple):
    how: How
    image: tuple[int, ...]  # [B, *spatial, C]
    kernel: tuple[int, ...]  # [*size, C / groups, O]


def _by_xla(x: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    return _output(x, kernel, _Form(how, x.shape, kernel.shape))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _output(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
    return _convolve(x, kernel, form.how)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _image(kernel: jax.Array, y: jax.Array, form: _Form) -> jax.Array:
    turned = jnp.swapaxes(kernel, -1, -2)
    return _transposed(lambda x: _convolve(x, turned, form.how, outputs_first=True), form.image, y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kernel(y: jax.Array, x: jax.Array, form: _Form) -> jax.Array:
    """In groups no convolution is fast, so that there it is a product with patches."""
    patches = form.how.groups > 1 or form.how.weight_grad == "matmul"
    forward = functools.partial(_by_patches if patches else _batch_last, x, how=form.how)
    return _transposed(forward, form.kernel, y)


def _transposed(linear: Any, shape: tuple[int, ...], y: jax.Array) -> jax.Array:
    return jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, y.dtype))(y)[0]


def _derive(third: Any, first: Any, second: Any) -> None:
    """c = third(a, b), a = first(b, c) and b = second(c, a) are each other's transposes."""

    def in_a(da, b, form):
        def run(da):
            return third(da, b, form)

        return with_transpose(run, lambda dc: first(b, dc, form), da)

    def in_b(a, db, form):
        def run(db):
            return third(a, db, form)

        return with_transpose(run, lambda dc: second(dc, a, form), db)

    # what is linear is traced once for all convolutions of one form
    differentiate(third, jax.jit(in_a, static_argnums=2), jax.jit(in_b, static_argnums=2))


_derive(_output, _image, _kernel)
_derive(_image, _kernel, _output)
_derive(_kernel, _output, _image)


def _convolve(x: jax.Array, kernel: jax.Array, how: How, outputs_first: bool = False) -> jax.Array:
    """[B, *spatial, C] with a kernel [*size, C, O], or [*size, O, C]."""
    n = x.ndim - 2
    channels_last = (0, n + 1, *range(1, n + 1))
    last = (n, n + 1) if outputs_first else (n + 1, n)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        how.strides,
        how.pads,
        lhs_dilation=how.input_dilation,
        rhs_dilation=how.dilation,
        feature_group_count=how.groups,
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            channels_last, (*last, *range(n)), channels_last
        ),
    )


def _batch_last(x: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """`_convolve` without groups, in the order of axes that is transposed into the fast one."""
    n = x.ndim - 2
    first_last = (n + 1, 0, *range(1, n + 1))  # (B or O, C, *spatial) of C .. B and C .. O
    y = jax.lax.conv_general_dilated(
        jnp.swapaxes(x, 0, -1),  # [C, H, W, B]
        jnp.moveaxis(kernel, -2, 0),  # [C, kh, kw, O]
        how.strides,
        how.pads,
        lhs_dilation=how.input_dilation,
        rhs_dilation=how.dilation,
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            first_last, first_last, (n, n + 1, *range(n))
        ),
    )
    return jnp.moveaxis(y, -2, 0)  # [H', W', B, O] to [B, H', W', O]


def _misread(x: jax.Array, kernel: jax.Array, how: How) -> bool:
    """Whether XLA's CPU compiler aborts on this convolution or a derivative of it, of any order.

    Of the image i, the kernel k and the output o any two make the third, by a convolution. XLA
    exchanges the two where the second is the larger, except along axes which it takes for groups by
    how far apart inputs and outputs are. Where an axis only looks so, for it has other than as many
    inputs as taps, a check in XLA fails: in jaxlib 0.10 to 0.12, with JAX's own gradients too.
    """
    sizes = (*x.shape[1:-1], *kernel.shape[:-2])
    if how.groups > 1 or not all(isinstance(size, int) for size in sizes):
        return False
    apart = how.input_dilation or (1,) * len(how.pads)
    axes = zip(x.shape[1:], kernel.shape, how.pads, how.dilation, apart, how.strides, strict=False)
    convolutions = [[] for _ in range(6)]  # by axis (inputs, taps, whether it looks like groups)
    for inputs, taps, (low, high), dilation, gap, stride in axes:
        wide, reach = (inputs - 1) * gap, (taps - 1) * dilation
        outputs = (wide + low + high - reach) // stride + 1
        across = (outputs - 1) * stride
        i, k, o = (inputs, gap, wide), (taps, dilation, reach), (outputs, stride, across)
        forms = [(i, k, o, low), (i, o, k, low), (o, k, i, reach - low)]
        forms += [(o, i, k, reach - low), (k, o, i, across - low), (k, i, o, across - low)]
        for form, (a, b, c, before) in zip(convolutions, forms, strict=True):
            after = high if form is convolutions[0] else b[2] + c[2] - a[2] - before
            looks = (a[1], c[1], b[1], before, after) == (b[0], b[0] - 1, 1, 0, 0)
            form.append((a[0], b[0], looks))
    return any(map(_looks_wrong, convolutions))


def _looks_wrong(axes: list[tuple[int, int, bool]]) -> bool:
    others = [(inputs, taps) for inputs, taps, looks in axes if not looks]
    inputs, taps = (math.prod(sizes) for sizes in zip(*others, strict=True)) if others else (1, 1)
    return inputs < taps and any(looks and inputs != taps for inputs, taps, looks in axes)


def _by_patches(x: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """`convolve` as a product with the patches of x."""
    patches = patches_of(x, kernel.shape[:-2], how)  # [B, *spatial, K, C]
    *lead, taps, channels = patches.shape
    patches = patches.reshape(*lead, taps, how.groups, channels // how.groups)
    split = (channels // how.groups, how.groups, kernel.shape[-1] // how.groups)
    products = jnp.einsum("...kgc,kcgo->...go", patches, kernel.reshape(taps, *split))
    return products.reshape(*lead, kernel.shape[-1])
