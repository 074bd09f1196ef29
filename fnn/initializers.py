"""Initializers: hashable values, called as `f(key, shape, dtype)`.

They can replace those of `jax.nn.initializers`, and equal them in distribution. Since they are
declared, not just called, one compiled sampler can draw a whole network; see `fnn.core.params`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jax.typing

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.core.params import Constant, Distribution
from fnn.core.types import Scalar, Shape

__all__ = [
    "constant", "glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal",
    "lecun_uniform", "normal", "ones", "orthogonal", "truncated_normal", "uniform",
    "variance_scaling", "zeros",
]  # fmt: skip


@builder
def constant(value: jax.typing.ArrayLike) -> Constant:
    """The same `value` everywhere (a number, or an array that broadcasts to the shape).

    >>> print(constant(0.5)(jax.random.key(0), (2,)))
    [0.5 0.5]
    """
    return Constant(value)


zeros = constant(0.0)
ones = constant(1.0)


@builder
def normal(stddev: Scalar = 1e-2) -> Distribution:
    """Normal with mean 0: x ~ N(0, stddev^2).

    >>> normal(0.1)(jax.random.key(0), (3, 4)).shape
    (3, 4)
    """
    return Distribution(("normal",), stddev)


@builder
def truncated_normal(
    stddev: Scalar = 1e-2, lower: float = -2.0, upper: float = 2.0
) -> Distribution:
    """Normal cut before scaling: x = stddev z, z ~ N(0, 1) given lower < z < upper.

    As in `jax.nn.initializers`, `stddev` is the scale: the cut makes the deviation smaller.

    >>> abs(truncated_normal(1.0)(jax.random.key(0), (100,))).max() <= 2
    Array(True, dtype=bool)
    """
    base = "truncated_normal", ("lower", float(lower)), ("upper", float(upper))
    return Distribution(base, stddev)


@builder
def uniform(scale: Scalar = 1e-2) -> Distribution:
    """Uniform from 0 to `scale`: x ~ U[0, scale).

    >>> uniform(1.0)(jax.random.key(0), (100,)).min() >= 0
    Array(True, dtype=bool)
    """
    return Distribution(("uniform",), scale)


_STANDARD = {  # a base of variance 1 / factor^2, and the factor
    "normal": (("normal",), 1.0),
    "truncated_normal": (
        ("truncated_normal", ("lower", -2.0), ("upper", 2.0)),
        1 / 0.87962566103423978,
    ),
    "uniform": (("uniform", ("minval", -1.0)), math.sqrt(3)),
}


@builder
def variance_scaling(
    scale: Scalar = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    in_axis: int = -2,
    out_axis: int = -1,
) -> Distribution:
    """Mean 0 and variance `scale / n`, n the fan that `mode` names (Glorot & Bengio, 2010).

    - `mode`: `"fan_in"`, `"fan_out"`, `"fan_avg"` (their mean) or `"fan_geo_avg"` (their
      geometric mean). A fan is the size of its axis times the receptive field, the product of the
      axes that are neither `in_axis` nor `out_axis`.
    - `distribution`: `"normal"`, `"truncated_normal"` (cut at two deviations, rescaled to the
      variance) or `"uniform"`.

    Raises OptionError for an unknown option, and for a shape with fewer than two axes.

    >>> variance_scaling(2.0, "fan_out", "uniform")(jax.random.key(0), (3, 3, 8, 16)).shape
    (3, 3, 8, 16)
    """
    checks.choice("mode", mode, ("fan_in", "fan_out", "fan_avg", "fan_geo_avg"))
    checks.choice("distribution", distribution, tuple(_STANDARD))
    base, factor = _STANDARD[distribution]
    return Distribution(base, FanScale(scale, mode, in_axis, out_axis, factor))


@dataclass(frozen=True)
class FanScale:
    """The scale of a kernel's draw, factor * sqrt(scale / fan), from its shape."""

    scale: Scalar
    mode: str
    in_axis: int
    out_axis: int
    factor: float

    def __call__(self, shape: Shape) -> Scalar:
        if len(shape) < 2:
            raise errors.OptionError(
                "a shape of two axes or more, to count fans",
                f"shape {shape}",
                "draw it from normal(stddev) or constant(value)",
            )
        field = math.prod(shape) / max(shape[self.in_axis] * shape[self.out_axis], 1)
        fan_in, fan_out = shape[self.in_axis] * field, shape[self.out_axis] * field
        fan = {
            "fan_in": fan_in,
            "fan_out": fan_out,
            "fan_avg": (fan_in + fan_out) / 2,
            "fan_geo_avg": math.sqrt(fan_in * fan_out),
        }[self.mode]
        root = math.sqrt if isinstance(self.scale, (int, float)) else jnp.sqrt
        return self.factor * root(self.scale / max(fan, 1))


@builder
def lecun_normal() -> Distribution:
    """Variance 1 / fan_in, truncated normal (LeCun et al., 1998): the default for kernels.

    >>> lecun_normal() == variance_scaling(1.0, "fan_in", "truncated_normal")
    True
    """
    return variance_scaling(1.0, "fan_in", "truncated_normal")


@builder
def lecun_uniform() -> Distribution:
    """Variance 1 / fan_in, uniform (LeCun et al., 1998).

    >>> lecun_uniform() == variance_scaling(1.0, "fan_in", "uniform")
    True
    """
    return variance_scaling(1.0, "fan_in", "uniform")


@builder
def glorot_normal() -> Distribution:
    """Variance 2 / (fan_in + fan_out), truncated normal (Glorot & Bengio, 2010).

    >>> glorot_normal() == variance_scaling(1.0, "fan_avg", "truncated_normal")
    True
    """
    return variance_scaling(1.0, "fan_avg", "truncated_normal")


@builder
def glorot_uniform() -> Distribution:
    """Variance 2 / (fan_in + fan_out), uniform (Glorot & Bengio, 2010, equation 16).

    >>> glorot_uniform() == variance_scaling(1.0, "fan_avg", "uniform")
    True
    """
    return variance_scaling(1.0, "fan_avg", "uniform")


@builder
def he_normal() -> Distribution:
    """Variance 2 / fan_in, truncated normal, for ReLU networks (He et al., 2015).

    >>> he_normal() == variance_scaling(2.0, "fan_in", "truncated_normal")
    True
    """
    return variance_scaling(2.0, "fan_in", "truncated_normal")


@builder
def he_uniform() -> Distribution:
    """Variance 2 / fan_in, uniform, for ReLU networks (He et al., 2015).

    >>> he_uniform() == variance_scaling(2.0, "fan_in", "uniform")
    True
    """
    return variance_scaling(2.0, "fan_in", "uniform")


@builder
def orthogonal(scale: Scalar = 1.0) -> Distribution:
    """`scale` times a uniformly random matrix with orthonormal columns, or rows if it is wide.

    All axes but the last are rows (Saxe et al., 2014). The draw is the Q of a normal matrix's QR
    with the signs of R's diagonal, which makes it uniform (Mezzadri, 2007).

    >>> q = orthogonal()(jax.random.key(0), (4, 4))
    >>> bool(jnp.allclose(q.T @ q, jnp.eye(4), atol=1e-5))
    True
    """
    return Distribution(("normal",), scale, _orthogonal)


def _orthogonal(z: jax.Array) -> jax.Array:
    if z.ndim < 2:
        raise errors.OptionError(
            "a shape of two axes or more, to be orthogonal",
            f"shape {z.shape}",
            "draw it from normal(stddev)",
        )
    matrix = z.reshape(-1, z.shape[-1])
    wide = matrix.shape[0] < matrix.shape[1]
    q, r = jnp.linalg.qr(matrix.T if wide else matrix)
    q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1)[None, :].astype(q.dtype)
    return (q.T if wide else q).reshape(z.shape)
