"""Kernels pruned and quantized."""

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import wide
from fnn.core.layer import Layer
from fnn.core.lengths import divide
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.layers.frozen import hold
from fnn.layers.reparam import along_axis, other_axes, over_named


@builder
def prune(layer: Layer, fraction: Scalar, names: tuple[str, ...] = ("kernel",)) -> Layer:
    """Hold the smallest weights at zero: w = mask * w (magnitude pruning; Han et al., 2015).

    Each weight becomes `{"value"}`; the mask is computed once, from the first params, and frozen:
    it is kept in the state, as `mask` beside the value (see `fnn.frozen`). To prune trained params,
    `fnn.unmerge` them.

    - `fraction`: the part of each array that is set to zero, the smallest in magnitude, in [0, 1].
    - `names`: which params, by their own name.

    >>> import jax, jax.numpy as jnp, fnn
    >>> params, state = prune(fnn.dense(4), 0.75).init(jax.random.key(0), (1, 4))
    >>> int(state["(frozen)"]["kernel"]["mask"].sum())
    4
    """
    checks.number("fraction", fraction, 0.0, 1.0)

    def encode(w, axis):
        rank = jnp.argsort(jnp.argsort(jnp.abs(w).reshape(-1)))
        kept = rank >= jnp.round(jnp.asarray(fraction) * w.size).astype(rank.dtype)
        return {"value": w, "mask": kept.reshape(w.shape)}

    def decode(p, axis):
        return jnp.where(p["mask"], p["value"], jnp.zeros_like(p["value"]))

    def is_mask(path, kind):
        return path.split("/")[-1] == "mask" and set(path.split("/")[-2:-1]) <= set(names)

    return hold(over_named(layer, names, encode, decode), is_mask)


@builder
def quantize(layer: Layer, bits: int = 8, names: tuple[str, ...] = ("kernel",)) -> Layer:
    """Round weights to 2^bits - 1 levels, with the gradient of the unrounded ones.

        s_o = max over the rest |w[..., o]| / (2^(bits-1) - 1),   w_q = s round(w / s)

    Quantization-aware training, symmetric and per output feature; the gradient passes straight
    through the rounding (Bengio et al., 2013; Jacob et al., 2018).

    - `bits`: 2 ... 32.
    - `names`: which params, by their own name; they keep their shape.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = quantize(fnn.dense(1, use_bias=False), 2)
    >>> print(net({"kernel": jnp.array([[1.0], [0.4], [-0.9]])}, jnp.eye(3))[:, 0])
    [ 1.  0. -1.]
    """
    bits = checks.count("bits", bits, least=2)
    if bits > 32:
        raise errors.OptionError("bits of at most 32", f"{bits}", "float32 has no more levels")

    def rounded(w, axis):
        if w.size == 0:
            return w
        wider = w.astype(wide(w.dtype))
        largest = jnp.max(jnp.abs(wider), axis=other_axes(w, axis))
        step = along_axis(largest / (2 ** (bits - 1) - 1), axis, w.ndim)
        return _straight_through(w, (jnp.round(divide(wider, step)) * step).astype(w.dtype))

    return over_named(layer, names, lambda w, axis: w, rounded)


@jax.custom_jvp
def _straight_through(w: jax.Array, near: jax.Array) -> jax.Array:
    """`near`, with the derivatives of w."""
    return near


@_straight_through.defjvp
def _straight_through_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return primals[1], tangents[0]
