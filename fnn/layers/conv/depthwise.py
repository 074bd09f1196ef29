"""Convolutions of each channel alone, and followed by a mix of the channels."""

from fnn.core import checks, errors
from fnn.core.compose import compose
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.initializers import lecun_normal, zeros
from fnn.layers.conv import windows
from fnn.layers.conv.conv import conv, kernel_and_bias, over_images
from fnn.layers.conv.windows import Padding


@builder
def depthwise_conv(
    kernel_size: tuple[int, ...],
    *,
    multiplier: int = 1,
    strides: int | tuple[int, ...] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, ...] = 1,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    bias_init=zeros,
) -> Layer:
    """Convolution of each channel alone: `conv` with as many groups as channels.

    y[p, c m + j] = sum over k of x[p s + k d, c] kernel[k, 0, c m + j] + bias[c m + j].
    [..., H, W, C] -> [..., H', W', C m], for any number of spatial axes.

    - `multiplier`: m, the outputs per channel; those of one channel are neighbours.
    - `strides`, `padding`, `dilation`: as in `conv`.

    On CPU, where XLA has no fast convolution in groups, a kernel of 128 taps or fewer is applied
    tap by tap, summed in float32 or wider.

    Params: `kernel` [*kernel_size, 1, C m], `bias` [C m], of x's dtype. Raises as `conv`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.depthwise_conv((3, 3), multiplier=2)
    >>> params, _ = net.init(jax.random.key(0), (1, 8, 8, 4))
    >>> net(params, jnp.ones((5, 8, 8, 4))).shape
    (5, 8, 8, 8)
    """
    window = windows.window("kernel_size", kernel_size, strides, padding, dilation)
    multiplier = checks.count("multiplier", multiplier)
    checks.initializer("kernel_init", kernel_init)
    checks.initializer("bias_init", bias_init)

    def specs(x):
        windows.check_input(x, window)
        if x.shape[-1] == 0:
            raise errors.ShapeError("at least one channel", f"x {x.shape}", "give x a channel")
        features, bias = x.shape[-1] * multiplier, bias_init if use_bias else None
        return kernel_and_bias(window.size, 1, features, x.dtype, kernel_init, bias), {}

    def apply(params, state, x, *, key, train):
        return over_images(params, x, window, x.shape[-1]), state

    return leaf("depthwise_conv", specs, apply)


@builder
def separable_conv(
    features: int,
    kernel_size: tuple[int, ...],
    *,
    multiplier: int = 1,
    strides: int | tuple[int, ...] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, ...] = 1,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    bias_init=zeros,
) -> Layer:
    """A depthwise convolution, then a pointwise one: space is mixed first, channels second.

    [..., H, W, C] -> [..., H', W', features], for any number of spatial axes. With K taps it takes
    C m (K + features) multiplications per pixel, and `conv` C K features (Chollet, 2017). As
    nothing lies between the two, the first has no bias.

    - `multiplier`, `strides`, `padding`, `dilation`: of the depthwise convolution.
    - `use_bias`, `bias_init`: of the pointwise one; `kernel_init`: of both.

    Params: `depthwise` (`kernel` [*kernel_size, 1, C m]) and `pointwise` (`kernel` [1, 1, C m,
    features], `bias` [features]). Raises as `conv`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.separable_conv(16, (3, 3))
    >>> params, _ = net.init(jax.random.key(0), (1, 8, 8, 4))
    >>> jax.tree.map(jnp.shape, params["depthwise"]), params["pointwise"]["kernel"].shape
    ({'kernel': (3, 3, 1, 4)}, (1, 1, 4, 16))
    """
    features = checks.count("features", features)  # here, so that errors name this layer
    multiplier = checks.count("multiplier", multiplier)
    size = windows.window("kernel_size", kernel_size, strides, padding, dilation).size
    checks.initializer("kernel_init", kernel_init)
    checks.initializer("bias_init", bias_init)

    @compose(
        depthwise=depthwise_conv(
            size,
            multiplier=multiplier,
            strides=strides,
            padding=padding,
            dilation=dilation,
            use_bias=False,
            kernel_init=kernel_init,
        ),
        pointwise=conv(
            features,
            (1,) * len(size),
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
        ),
    )
    def separable_conv(f, x):  # [..., H, W, C]
        return f.pointwise(f.depthwise(x))

    return separable_conv
