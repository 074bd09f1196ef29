"""Kernels divided by a norm of their own."""

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks
from fnn.core.dtypes import wide
from fnn.core.layer import Layer
from fnn.core.lengths import as_length, exponent, length_over, scaled, times_power, value
from fnn.core.origins import builder
from fnn.layers.reparam import along_axis, other_axes, outputs_last, over_named


@builder
def weight_norm(layer: Layer, names: tuple[str, ...] = ("kernel",)) -> Layer:
    """Learn length and direction of each weight vector: w = gain v / |v| (Salimans & Kingma, 2016).

    A vector holds the weights of one output feature: all axes of a kernel but that of its outputs,
    by the names in `Param.axes`. At first gain = |w| and v = w, so the layer starts unchanged.

    - `names`: which params, by their own name; each becomes `{"gain", "direction"}`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> params, _ = weight_norm(fnn.dense(2)).init(jax.random.key(0), (1, 3))
    >>> jax.tree.map(jnp.shape, params["kernel"])
    {'direction': (3, 2), 'gain': (2,)}
    """

    def length(v, axis):
        return length_over(v.astype(wide(v.dtype)), other_axes(v, axis))

    def split(w, axis):
        return {"gain": value(length(w, axis)).reshape(-1).astype(w.dtype), "direction": w}

    def join(p, axis):
        v, size = p["direction"], length(p["direction"], axis)
        dtype = size.root.dtype
        unit = scaled(v.astype(dtype), as_length(1.0, dtype), size)
        return (unit * along_axis(p["gain"].astype(dtype), axis, v.ndim)).astype(v.dtype)

    return over_named(layer, names, split, join, {"gain": ("out",)})


@builder
def spectral_norm(
    layer: Layer, names: tuple[str, ...] = ("kernel",), *, iterations: int = 8
) -> Layer:
    """Divide each kernel by its largest singular value: w / sigma(w) (Miyato et al., 2018).

    The kernel is the matrix [everything else, features]. Sigma is found by power iteration, whose
    vectors are constants to the gradient: d sigma = u^T dw v. It starts from a vector of fixed
    normal draws: a simple one, such as ones, is orthogonal to the largest singular vector of many
    simple kernels (antisymmetric, centred, a Sobel filter) and would never find it.

    - `names`: which params, by their own name; they keep their shape.
    - `iterations`: of the power method. The estimate comes closer to sigma from below.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = spectral_norm(fnn.dense(4, use_bias=False), iterations=100)
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> bool(jnp.abs(jnp.linalg.norm(net(params, jnp.eye(4)), 2) - 1) < 1e-3)
    True
    """
    iterations = checks.count("iterations", iterations)

    def unit(v):
        size = jnp.linalg.norm(v)
        return v / jnp.where(size == 0, 1, size)

    def normalized(w, axis):
        last = outputs_last(w, axis)
        matrix = last.reshape(-1, last.shape[-1]).astype(wide(w.dtype))
        matrix = times_power(matrix, -exponent(jnp.max(jnp.abs(matrix), initial=0)))
        fixed = jax.lax.stop_gradient(matrix)
        v = unit(jnp.asarray(_start(matrix.shape[1]), matrix.dtype))
        v = jax.lax.fori_loop(0, iterations, lambda _, v: unit(fixed.T @ (fixed @ v)), v)
        sigma = unit(fixed @ v) @ matrix @ v
        divided = (matrix / jnp.where(sigma == 0, 1, sigma)).astype(w.dtype)
        return jnp.moveaxis(divided.reshape(last.shape), -1, axis)

    return over_named(layer, names, lambda w, axis: w, normalized)


def _start(n: int) -> np.ndarray:
    """Normal values, always the same: orthogonal to hardly any kernel's vector."""
    return np.random.default_rng(0).normal(size=n)
