"""Convolutions over any number of spatial axes, channels last."""

from typing import Any

import jax

from fnn.core import checks, errors
from fnn.core.declarations import Param
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.core.types import Dtype, Shape, Tree
from fnn.initializers import lecun_normal, zeros
from fnn.layers.conv import backends, windows
from fnn.layers.conv.convolution import Geometry
from fnn.layers.conv.windows import Padding


@builder
def conv(
    features: int,
    kernel_size: tuple[int, ...],
    *,
    strides: int | tuple[int, ...] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    use_bias: bool = True,
    weight_grad: str = "conv",
    kernel_init=lecun_normal(),
    bias_init=zeros,
) -> Layer:
    """Convolution, y[p, o] = sum over k, c of x[p s + k d, c] kernel[k, c, o] + bias[o].

    [..., H, W, C] -> [..., H', W', features], for any number of spatial axes, which is the length
    of `kernel_size`. (As usual in the field, the kernel is not flipped.)

    - `strides`, `dilation`: s and d, the steps in the input between outputs and between the
      kernel's taps; one for all spatial axes, or one each.
    - `padding`: `"SAME"` (H' = ceil(H / s)), `"VALID"` (none), `"CAUSAL"` (SAME's, all before the
      first value, so that no output sees a later input), `"CIRCULAR"` or `"REFLECT"` (SAME's, with
      the image's own values), an int, or one (low, high) pair per spatial axis.
    - `groups`: channels in and out are split into this many groups, convolved independently.
    - `weight_grad`: how the derivative by the kernel is computed. `"conv"` is a convolution, as
      fast inside a `jax.lax.scan` as outside, in every mode. `"matmul"` gathers the patches and
      forms one matrix product, which is usually slower on CPU.

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
    size: Shape, cin: int, features: int, dtype: Dtype, kernel_init: Any, bias_init: Any
) -> dict[str, Param]:
    """The params of a convolution; no bias where `bias_init` is None."""
    axes = (*windows.names(len(size)), "in", "out")
    kernel = Param((*size, cin, features), kernel_init, dtype, "kernel", axes)
    if bias_init is None:
        return {"kernel": kernel}
    return {"kernel": kernel, "bias": Param((features,), bias_init, dtype, "bias", ("out",))}


def over_images(
    params: Tree, x: jax.Array, window: windows.Window, groups: int, weight_grad: str = "conv"
) -> jax.Array:
    """Every image convolved with the kernel, and the bias added where there is one."""

    def run(x):  # [B, H, W, C]
        x, pads = windows.pad(x, window)
        strides, dilation = window.strides, window.dilation
        geometry = Geometry(strides, pads, dilation, groups, weight_grad=weight_grad)
        return backends.convolve(x, params["kernel"], geometry)  # as convolution.convolve

    y = windows.over_images(run, x, len(window.size))
    return biased(y, params)


def biased(y: jax.Array, params: Tree) -> jax.Array:
    """y plus the bias of its last axes, where there is one."""
    if "bias" not in params:
        return y
    bias = params["bias"]
    return y + jax.lax.expand_dims(bias, range(y.ndim - bias.ndim))
