"""Convolutions whose kernel is not shared between positions."""

import math

import jax.numpy as jnp

from fnn.core import checks
from fnn.core.declarations import Param
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.initializers import lecun_normal, zeros
from fnn.layers.conv import windows
from fnn.layers.conv.conv import biased
from fnn.layers.conv.convolution import Geometry, patches_of
from fnn.layers.conv.windows import Padding


@builder
def local_conv(
    features: int,
    kernel_size: tuple[int, ...],
    *,
    strides: int | tuple[int, ...] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, ...] = 1,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    bias_init=zeros,
) -> Layer:
    """Convolution with a kernel of its own at each output: `conv`, unshared over p.

    y[p, o] = sum over k, c of x[p s + k d, c] kernel[p, k, c, o] + bias[p, o].
    [..., H, W, C] -> [..., H', W', features], for any number of spatial axes (LeCun, 1989).

    - `strides`, `padding`, `dilation`: as in `conv`.
    - `kernel_init`: draws the kernel of each position, so its fans are those of `conv`.

    Params: `kernel` [H', W', *kernel_size, C, features], `bias` [H', W', features], of x's dtype;
    so `init` fixes H and W. Raises as `conv`, and ParamsError for another H or W.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.local_conv(3, (3, 3), strides=2)
    >>> params, _ = net.init(jax.random.key(0), (1, 8, 8, 2))
    >>> params["kernel"].shape, net(params, jnp.ones((5, 8, 8, 2))).shape
    ((4, 4, 3, 3, 2, 3), (5, 4, 4, 3))
    """
    features = checks.count("features", features)
    window = windows.window("kernel_size", kernel_size, strides, padding, dilation)
    checks.initializer("kernel_init", kernel_init)
    checks.initializer("bias_init", bias_init)
    n = len(window.size)

    def specs(x):
        windows.check_input(x, window)
        places = window.outputs(x.shape[-n - 1 : -1])
        shape = (*window.size, x.shape[-1], features)
        axes = (*windows.names(n), "in", "out")
        kernel = Param(shape, kernel_init, x.dtype, "kernel", axes, places)
        bias = Param((features,), bias_init, x.dtype, "bias", ("out",), places)
        return {"kernel": kernel, "bias": bias} if use_bias else {"kernel": kernel}, {}

    def apply(params, state, x, *, key, train):
        taps, places = math.prod(window.size), params["kernel"].shape[:n]
        kernel = params["kernel"].reshape(*places, taps, x.shape[-1], features)

        def run(x):  # [B, H, W, C]
            x, pads = windows.pad(x, window)
            geometry = Geometry(window.strides, pads, window.dilation)
            patches = patches_of(x, window.size, geometry)  # [B, H', W', K, C]
            return jnp.einsum("b...kc,...kco->b...o", patches, kernel)

        y = windows.over_images(run, x, n)
        return biased(y, params), state

    return leaf("local_conv", specs, apply)
