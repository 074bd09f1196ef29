"""Convolutions over any number of spatial axes, channels last."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn import checks, errors
from fnn.initializers import lecun_normal, zeros
from fnn.initializing import Param
from fnn.layer import Layer, leaf
from fnn.layers import windows


@errors.builder
def conv(
    features: int,
    kernel_size: tuple[int, ...],
    *,
    strides: int | tuple[int, ...] = 1,
    padding: windows.Padding = "SAME",
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    use_bias: bool = True,
    weight_grad: str = "conv",
    kernel_init=lecun_normal(),
    bias_init=zeros,
) -> Layer:
    """Convolution, y[p, o] = sum over k, c of x[p s + k d, c] kernel[k, c, o] + bias[o].

    [..., H, W, C] -> [..., H', W', features], and likewise for any number of spatial axes, which
    is the length of `kernel_size`. (As everywhere in the field: the kernel is not flipped.)

    - `strides`, `dilation`: s and d, the steps in the input between outputs and between the
      kernel's taps; one for all spatial axes, or one each.
    - `padding`: `"SAME"` (H' = ceil(H / s)), `"VALID"` (none), `"CAUSAL"` (SAME's, all before the
      first value, so that no output sees a later input), `"CIRCULAR"` or `"REFLECT"` (SAME's, with
      the image's own values), an int, or one (low, high) pair per spatial axis.
    - `groups`: channels in and out are split into so many groups that do not see each other.
    - `weight_grad`: how the gradient of the kernel is computed. `"conv"` is a convolution, fast
      inside a `jax.lax.scan` too. `"matmul"` gathers the patches and forms it as one matrix
      product: slower, but not so in forward mode (`jax.jvp`) inside a scan on CPU, where XLA
      falls back to a slow loop for the other.

    Params: `kernel` [*kernel_size, C / groups, features], `bias` [features], of x's dtype.
    Raises OptionError, and ShapeError for an input that is too small or has other channels.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.conv(8, (3, 3), strides=2)
    >>> params, _ = net.init(jax.random.key(0), (1, 28, 28, 1))
    >>> net(params, jnp.ones((5, 28, 28, 1))).shape
    (5, 14, 14, 8)
    """
    features = checks.count("features", features)
    window = windows.window("kernel_size", kernel_size, strides, padding, dilation)
    groups = checks.count("groups", groups)
    checks.choice("weight_grad", weight_grad, ("conv", "matmul"))
    checks.initializer("kernel_init", kernel_init)
    checks.initializer("bias_init", bias_init)
    if features % groups:
        raise errors.OptionError(
            f"features divisible by groups={groups}", f"features={features}", "change either"
        )

    def specs(x):
        windows.check_input(x, window)
        if x.shape[-1] % groups:
            raise errors.ShapeError(
                f"last axis divisible by groups={groups}", f"x {x.shape}", "change groups or x"
            )
        cin = x.shape[-1] // groups
        bias = bias_init if use_bias else None
        return kernel_and_bias(window.size, cin, features, x.dtype, kernel_init, bias), {}

    def apply(params, state, x, *, key, train):
        return over_images(params, x, window, groups, weight_grad), state

    return leaf("conv", specs, apply)


def kernel_and_bias(
    size: tuple[int, ...], cin: int, features: int, dtype: Any, kernel_init: Any, bias_init: Any
) -> dict[str, Param]:
    """What a convolution declares; no bias where `bias_init` is None."""
    axes = (*windows.AXES[: len(size)], "in", "out") if len(size) <= 3 else None
    kernel = Param((*size, cin, features), kernel_init, dtype, "kernel", axes)
    if bias_init is None:
        return {"kernel": kernel}
    return {"kernel": kernel, "bias": Param((features,), bias_init, dtype, "bias", ("out",))}


class How(NamedTuple):
    """The static part of a convolution."""

    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    input_dilation: tuple[int, ...] | None = None  # of the input: a transposed convolution's
    weight_grad: str = "conv"


def over_images(
    params: Any, x: jax.Array, window: windows.Window, groups: int, weight_grad: str = "conv"
) -> jax.Array:
    """Every image convolved with the kernel, and the bias added where there is one."""

    def run(x):  # [B, H, W, C]
        x, pads = windows.pad(x, window)
        how = How(window.strides, pads, window.dilation, groups, weight_grad=weight_grad)
        return convolve(x, params["kernel"], how)

    y = windows.over_images(run, x, len(window.size))
    return y + params["bias"] if "bias" in params else y


def convolve(x: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """A convolution; a product with patches where XLA would abort on that."""
    return (_by_patches if _misread(x, kernel, how) else _by_xla)(x, kernel, how)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _by_xla(x: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """A convolution whose gradients are fast inside a loop too, on CPU.

    XLA's CPU compiler has a fast convolution for one order of axes, the one used here, and brings
    others into it in the outermost program alone, not in the body of a `scan`. JAX transposes a
    convolution into another order, unless it stands in the order of `_by_kernel`. In groups none
    is fast, so that there the gradient of the kernel is a product with patches.
    """
    return _convolve(x, kernel, how)


@functools.partial(_by_xla.defjvp, symbolic_zeros=True)
def _by_xla_jvp(how: How, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _by_xla(x, kernel, how)
    dy = jnp.zeros_like(y) if _is_zero(dx) else _by_xla(dx, kernel, how)
    return y, dy if _is_zero(dkernel) else dy + _by_kernel(x, dkernel, how)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _by_kernel(x: jax.Array, dkernel: jax.Array, how: How) -> jax.Array:
    """`convolve`, linear in the kernel, written so that its transpose is fast.

    The transpose is what reverse mode runs: of a product with patches, patches^T dy.
    """
    if how.weight_grad == "matmul":
        return _by_patches(x, dkernel, how)
    plain = functools.partial(_convolve, how=how)
    if how.groups > 1:
        patches = functools.partial(_by_patches, how=how)
        return jax.lax.platform_dependent(x, dkernel, cpu=patches, default=plain)

    def swapped(x, dkernel):
        n = x.ndim - 2
        first_last = (n + 1, 0, *range(1, n + 1))  # (B or O, C, *spatial) of C .. B and C .. O
        y = jax.lax.conv_general_dilated(
            jnp.swapaxes(x, 0, -1),  # [C, H, W, B]
            jnp.moveaxis(dkernel, -2, 0),  # [C, kh, kw, O]
            how.strides,
            how.pads,
            lhs_dilation=how.input_dilation,
            rhs_dilation=how.dilation,
            dimension_numbers=jax.lax.ConvDimensionNumbers(
                first_last, first_last, (n, n + 1, *range(n))
            ),
        )
        return jnp.moveaxis(y, -2, 0)  # [H', W', B, O] to [B, H', W', O]

    return jax.lax.platform_dependent(x, dkernel, cpu=swapped, default=plain)


def _convolve(x: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    n = x.ndim - 2
    channels_last = (0, n + 1, *range(1, n + 1))
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        how.strides,
        how.pads,
        lhs_dilation=how.input_dilation,
        rhs_dilation=how.dilation,
        feature_group_count=how.groups,
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            channels_last, (n + 1, n, *range(n)), channels_last
        ),
    )


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


def patches_of(x: jax.Array, size: tuple[int, ...], how: How) -> jax.Array:
    """The inputs under each of the kernel's taps: [B, *spatial, K, C]."""
    apart = how.input_dilation or (1,) * len(size)
    pads = [(*pad, d - 1) for pad, d in zip(how.pads, apart, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    spans = [(k - 1) * d + 1 for k, d in zip(size, how.dilation, strict=True)]
    offsets = itertools.product(*(range(0, s, d) for s, d in zip(spans, how.dilation, strict=True)))
    taps = [windows.strided(x, offset, spans, how.strides) for offset in offsets]
    return jnp.stack(taps, axis=-2)
