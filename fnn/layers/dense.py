"""Affine maps."""

import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.declarations import Param
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.core.shapes import of_rank
from fnn.initializers import lecun_normal, zeros
from fnn.layers.cpu_matmul import matmul


@builder
def dense(
    features: int,
    *,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    bias_init=zeros,
    axes: tuple[str | tuple[str, int], str | tuple[str, int]] = ("in", "out"),
) -> Layer:
    """Affine map of the last axis, y = x @ kernel + bias: [..., C] -> [..., features].

    - `features`: the size of the output's last axis.
    - `use_bias`: False leaves the bias out, as before a norm that would remove it.
    - `kernel_init`, `bias_init`: initializers; variance 1 / C keeps the variance of x.
    - `axes`: the logical names of the kernel's axes (see `fnn.Param`), such as ("in", "hidden"); a
      pair ("heads", 8) names an axis that consists of 8 parts, between which alone it is cut.

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
    if not (isinstance(axes, tuple) and len(axes) == 2 and all(map(_is_name, axes))):
        raise errors.OptionError(
            "axes to be two names", errors.show(axes), 'pass them as ("in", "out")'
        )
    names, parts = zip(*(a if isinstance(a, tuple) else (a, None) for a in axes), strict=True)

    def specs(x):
        checks.array(x, 1, "[..., C]")
        shape = x.shape[-1], features
        kernel = Param(shape, kernel_init, x.dtype, "kernel", names, parts=parts)
        bias = Param(shape[1:], bias_init, x.dtype, "bias", names[1:], parts=parts[1:])
        return {"kernel": kernel, "bias": bias} if use_bias else {"kernel": kernel}, {}

    def apply(params, state, x, *, key, train):
        y = matmul(x, params["kernel"])  # x @ kernel
        return y + of_rank(params["bias"], y.ndim) if use_bias else y, state

    return leaf("dense", specs, apply)


def _is_name(axis: object) -> bool:
    """Whether this is a name, or a name and a number of parts."""
    name, n = axis if isinstance(axis, tuple) and len(axis) == 2 else (axis, 1)
    return isinstance(name, str) and isinstance(n, int) and n > 0


@builder
def bilinear(
    features: int, *, use_bias: bool = True, kernel_init=lecun_normal(), bias_init=zeros
) -> Layer:
    """Bilinear form of two inputs, y_o = x1^T kernel_o x2 + bias_o: [..., A], [..., B] -> [..., O].

    - `features`: O, the size of the output's last axis.
    - `use_bias`: False leaves the bias out.
    - `kernel_init`, `bias_init`: initializers; variance 1 / (A B) keeps that of the products.

    Params: `kernel` [A, B, O], `bias` [O]; both take x1's dtype.
    Raises ShapeError for another last axis, or for leading axes that differ between the inputs
    (none is broadcast), DtypeError for another dtype.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.bilinear(3)
    >>> params, _ = net.init(jax.random.key(0), (1, 4), (1, 2))
    >>> net(params, jnp.ones((5, 7, 4)), jnp.ones((5, 7, 2))).shape
    (5, 7, 3)
    """
    features = checks.count("features", features)
    checks.initializer("kernel_init", kernel_init)
    checks.initializer("bias_init", bias_init)

    def specs(x1, x2):
        checks.array(x1, 1, "[..., A]", "x1")
        checks.array(x2, 1, "[..., B]", "x2")
        if x1.shape[:-1] != x2.shape[:-1]:
            raise errors.ShapeError(
                "x1 and x2 with the same leading axes",
                f"x1 {x1.shape}, x2 {x2.shape}",
                "broadcast one to the other's, as jnp.broadcast_to(x1, (*x2.shape[:-1], A))",
            )
        if x1.dtype != x2.dtype:
            raise errors.DtypeError(
                "x1 and x2 of one dtype",
                f"x1 {errors.show(x1)}, x2 {errors.show(x2)}",
                f"cast one, as x2.astype(jnp.{x1.dtype})",
            )
        shape, axes = (x1.shape[-1], x2.shape[-1], features), ("in", "in2", "out")
        kernel = Param(shape, kernel_init, x1.dtype, "kernel", axes)
        bias = Param((features,), bias_init, x1.dtype, "bias", ("out",))
        return {"kernel": kernel, "bias": bias} if use_bias else {"kernel": kernel}, {}

    def apply(params, state, x1, x2, *, key, train):
        y = jnp.einsum("...a,...b,abo->...o", x1, x2, params["kernel"])
        return y + of_rank(params["bias"], y.ndim) if use_bias else y, state

    return leaf("bilinear", specs, apply)
