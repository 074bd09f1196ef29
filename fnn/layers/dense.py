"""Affine maps."""

from __future__ import annotations

from fnn import checks, errors
from fnn.initializers import lecun_normal, zeros
from fnn.initializing import Param
from fnn.layer import Layer, leaf


@errors.builder
def dense(
    features: int, *, use_bias: bool = True, kernel_init=lecun_normal(), bias_init=zeros
) -> Layer:
    """Affine map of the last axis, y = x @ kernel + bias: [..., C] -> [..., features].

    - `features`: the size of the output's last axis.
    - `use_bias`: False leaves the bias out, as before a norm that would remove it.
    - `kernel_init`, `bias_init`: initializers; variance 1 / C keeps the variance of x.

    Params: `kernel` [C, features], `bias` [features]; both take x's dtype.
    Raises ShapeError for another last axis, DtypeError for another dtype.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.dense(3)
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> net(params, jnp.ones((5, 7, 4))).shape
    (5, 7, 3)
    """
    features = checks.count("features", features)
    checks.initializer("kernel_init", kernel_init)
    checks.initializer("bias_init", bias_init)

    def specs(x):
        checks.array(x, 1, "[..., C]")
        kernel = Param((x.shape[-1], features), kernel_init, x.dtype, "kernel", ("in", "out"))
        bias = Param((features,), bias_init, x.dtype, "bias", ("out",))
        return {"kernel": kernel, "bias": bias} if use_bias else {"kernel": kernel}, {}

    def apply(params, state, x, *, key, train):
        y = x @ params["kernel"]
        return y + params["bias"] if use_bias else y, state

    return leaf("dense", specs, apply)
