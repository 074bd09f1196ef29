"""The arithmetic of convolutions, each written as XLA computes it fast."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from fnn.layers.taps import How, by_tap, differentiate, patches_of, suits_taps
from fnn.layers.transposes import transposed_as


def convolve(x: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """A convolution, as XLA computes it; but otherwise where on CPU it is slow, or aborts."""
    if _misread(x, kernel, how):
        return _by_patches(x, kernel, how)
    plain = functools.partial(_by_xla, how=how)
    if not suits_taps(x, kernel, how):
        return plain(x, kernel)
    tap_by_tap = functools.partial(by_tap, how=how)
    return jax.lax.platform_dependent(x, kernel, cpu=tap_by_tap, default=plain)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _by_xla(x: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """A convolution whose derivatives are fast on CPU in every mode, inside a loop too.

    XLA's CPU compiler has a fast convolution for one order of axes, that of `_convolve`, and brings
    others into it in the outermost program alone, not in the body of a `scan`, where they run many
    times as long. JAX transposes a convolution into another order than it stands in. So each of the
    two linear parts runs in this order, and is transposed from where JAX brings it into this order.
    """
    return _convolve(x, kernel, how)


def _in_x(dx: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """`_by_xla`, linear in x."""

    def run(kernel, dx):
        return _by_xla(dx, kernel, how)

    def twin(kernel, dx):
        return _convolve(dx, jnp.swapaxes(kernel, -1, -2), how, outputs_first=True)

    def plain(dx, kernel):
        return _by_xla(dx, kernel, how)

    def fast(dx, kernel):
        return transposed_as(twin, run, kernel, dx)

    return jax.lax.platform_dependent(dx, kernel, cpu=fast, default=plain)


def _in_kernel(x: jax.Array, dkernel: jax.Array, how: How) -> jax.Array:
    """`_by_xla`, linear in the kernel; in groups a product with patches, which are none fast."""
    if how.weight_grad == "matmul":
        return _by_patches(x, dkernel, how)

    def run(x, dkernel):
        return _by_xla(x, dkernel, how)

    def fast(x, dkernel):
        if how.groups > 1:
            return _by_patches(x, dkernel, how)
        return transposed_as(functools.partial(_batch_last, how=how), run, x, dkernel)

    return jax.lax.platform_dependent(x, dkernel, cpu=fast, default=run)


differentiate(_by_xla, _in_x, _in_kernel)


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
