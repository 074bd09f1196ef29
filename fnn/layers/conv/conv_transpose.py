"""Transposed convolutions: the adjoint of a convolution's map from image to image."""

import dataclasses

import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.initializers import lecun_normal, variance_scaling, zeros
from fnn.layers.conv import backends, windows
from fnn.layers.conv.conv import biased, kernel_and_bias
from fnn.layers.conv.convolution import Geometry
from fnn.layers.conv.windows import Padding


@builder
def conv_transpose(
    features: int,
    kernel_size: tuple[int, ...],
    *,
    strides: int | tuple[int, ...] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, ...] = 1,
    transpose_kernel: bool = False,
    use_bias: bool = True,
    kernel_init=None,
    bias_init=zeros,
) -> Layer:
    """Transposed convolution: x[p] is spread over y[p s + k d - low] for each tap k of the kernel.

    [..., H, W, C] -> [..., H', W', features], for any number of spatial axes. Its shapes are those
    of a convolution from y's image to x's (Dumoulin & Visin, 2016, chapter 4), whose options it
    takes; with r = (k - 1) d + 1, the reach of a kernel of k taps:

    - `strides`, `dilation`: s and d, one for all spatial axes, or one each.
    - `padding`: that convolution's. `"SAME"` gives H' = H s, `"VALID"` (H - 1) s + max(r, s); an
      int or (low, high) pairs give (H - 1) s + r - low - high, as in PyTorch: the convolution's
      padding is cut off here. (`jax.lax.conv_transpose` takes r - 1 - low in its pairs.)
    - `transpose_kernel`: the layout of the kernel. False: `kernel` [*kernel_size, C, features]
      slides as in `conv` over x with s - 1 zeros between its values, y = sum kernel[k] x[...], as
      in `jax.lax.conv_transpose`. True: `kernel` [*kernel_size, features, C] is the other
      convolution's, x[p] kernel[k] is added to y[p s + k d - low], as in PyTorch and Keras.
    - `kernel_init`: sees the stored axes. None has variance 1 / (C times the taps) in both layouts:
      `lecun_normal()`, or with `transpose_kernel` the same over axis -1,
      `variance_scaling(in_axis=-1, out_axis=-2)`.

    Params: `kernel`, and `bias` [features], of x's dtype.
    Raises OptionError, and ShapeError for an input of other channels or an empty output.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.conv_transpose(8, (3, 3), strides=2)
    >>> params, _ = net.init(jax.random.key(0), (1, 14, 14, 3))
    >>> net(params, jnp.ones((5, 14, 14, 3))).shape
    (5, 28, 28, 8)
    """
    features = checks.count("features", features)
    window = windows.window(
        "kernel_size", kernel_size, strides, padding, dilation, ("SAME", "VALID")
    )
    if kernel_init is None:
        transposed = variance_scaling(in_axis=-1, out_axis=-2)
        kernel_init = transposed if transpose_kernel else lecun_normal()
    checks.initializer("kernel_init", kernel_init)
    checks.initializer("bias_init", bias_init)
    n = len(window.size)
    pads = _pads(window)

    def specs(x):
        checks.array(x, n + 1, f"[..., {n} spatial axes, C]")
        _check_sizes(x.shape, window, pads)
        cin, bias = x.shape[-1], bias_init if use_bias else None
        params = kernel_and_bias(window.size, cin, features, x.dtype, kernel_init, bias)
        if transpose_kernel:
            params["kernel"] = _swapped(params["kernel"])
        return params, {}

    def apply(params, state, x, *, key, train):
        kernel = params["kernel"]
        if transpose_kernel:
            kernel = jnp.swapaxes(jnp.flip(kernel, range(n)), -1, -2)
        geometry = Geometry((1,) * n, pads, window.dilation, input_dilation=window.strides)
        y = windows.over_images(lambda x: backends.convolve(x, kernel, geometry), x, n)
        return biased(y, params), state

    return leaf("conv_transpose", specs, apply)


def _pads(window: windows.Window) -> tuple[tuple[int, int], ...]:
    """Zeros around the spread input, per axis: r - 1 on both sides gives the uncut output.

    For the named paddings the output may reach beyond that, where it is zero: its length is fixed,
    such as H s.
    """
    pads = []
    for axis, (span, stride) in enumerate(zip(window.spans, window.strides, strict=True)):
        beyond = max(stride - span, 0)
        if window.padding == "VALID":
            low, high = 0, -beyond
        elif window.padding == "SAME":  # the convolution pads what (H - 1) s + r exceeds H s by
            total = max(span - stride, 0)
            low, high = total // 2, total - total // 2 - beyond
        else:
            low, high = window.padding[axis]
        pads.append((span - 1 - low, span - 1 - high))
    return tuple(pads)


def _check_sizes(shape: tuple, window: windows.Window, pads: tuple) -> None:
    """Refuse an input or an output with an empty spatial axis."""
    n = len(pads)
    axes = zip(shape[-n - 1 : -1], window.strides, window.spans, pads, strict=True)
    for size, stride, span, (low, high) in axes:
        if isinstance(size, int) and (size < 1 or (size - 1) * stride + low + high < span - 1):
            least = 1 + max(-((low + high + 1 - span) // stride), 0)
            raise errors.ShapeError(
                f"spatial axes of at least {least}, for an output to be left after padding",
                f"x {shape}",
                "pad less, or use a larger input",
            )


def _swapped(kernel):
    """The declaration of the kernel in the other convolution's layout."""
    shape, axes = kernel.shape, kernel.axes
    shape = (*shape[:-2], shape[-1], shape[-2])
    axes = axes and (*axes[:-2], axes[-1], axes[-2])
    return dataclasses.replace(kernel, shape=shape, axes=axes)
