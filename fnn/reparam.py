"""Layers over other parameters: what is learned is not what the layer computes with.

`reparam` says how to get from one to the other. Weight and spectral norm, LoRA, pruning and
quantization are each a pair of functions given to it.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from fnn import checks, errors
from fnn.dtypes import wide
from fnn.initializers import normal
from fnn.initializing import Derived, Param
from fnn.layer import Layer, as_layer, outline, traced
from fnn.shapes import arity, arrays_of, from_numpy, struct

__all__ = ["lora", "prune", "quantize", "reparam", "spectral_norm", "weight_norm"]


@errors.builder
def reparam(layer: Layer | Callable, encode: Callable, decode: Callable) -> Layer:
    """The layer over other parameters: y = layer(decode(params), x).

    - `encode(params)`, or `encode(params, key)` if it draws: from the layer's own first params to
      the new ones, a nested dict.
    - `decode(params)`: back to what the layer computes with; it is part of the network, and
      differentiated.

    The layer's params are drawn as they would be without `reparam`, then encoded. To start from
    trained ones, encode them yourself. Wrap a layer, or a whole network; inside `repeat`, every
    member is encoded by itself. Raises ParamsError for params that are not what encode gives.

    >>> import jax, jax.numpy as jnp, fnn
    >>> double = reparam(fnn.dense(2), lambda p: {"half": p}, lambda p: p["half"])
    >>> params, _ = double.init(jax.random.key(0), (1, 3))
    >>> jax.tree.map(jnp.shape, params)
    {'half': {'bias': (2,), 'kernel': (3, 2)}}
    """
    for name, fn in (("encode", encode), ("decode", decode)):
        checks.function(name, fn, "params")
    layer, encoded = as_layer(layer), Encoded(encode)

    def declare(*xs):
        (params, state), y = outline(layer, xs)
        if arity(encode)[0] > 1:
            return (Derived(encoded, {"params": params, "key": _SEED}), state), y
        return (Derived(encoded, params), state), y

    specs = traced(declare)

    @functools.lru_cache(maxsize=32)
    def wanted(treedef, structs):
        return arrays_of(specs(*jax.tree.unflatten(treedef, structs))[0])

    def apply(params, state, *xs, key=None, train=False):
        """(y, state) at the decoded params; see `fnn.Layer`."""
        with errors.within(layer.name):
            params, xs = jax.tree.map(from_numpy, (params, xs))
            structs, treedef = jax.tree.flatten(jax.tree.map(struct, xs))
            errors.check_same("params", params, wanted(treedef, tuple(structs)))
            return layer.apply(decode(params), state, *xs, key=key, train=train)

    def rebuild(new):
        assert layer.rebuild is not None
        return reparam(layer.rebuild(new), encode, decode)

    def carry(params, x, **mode):
        """The first carry of a recurrent cell."""
        assert layer.carry is not None
        return layer.carry(decode(params), x, **mode)

    return replace(
        layer,
        specs=specs,
        apply=apply,
        rebuild=layer.rebuild and rebuild,
        carry=layer.carry and carry,
    )


_SEED = Param((2,), lambda key, shape, dtype: jax.random.bits(key, shape, dtype), jnp.uint32)


@dataclass(frozen=True)
class Encoded:
    """`encode`, with a key made of the drawn bits if it wants one; hashable."""

    encode: Callable

    def __call__(self, values: Any) -> Any:
        if arity(self.encode)[0] < 2:
            params = self.encode(values)
        else:
            key = jax.random.wrap_key_data(values["key"], impl="threefry2x32")
            params = self.encode(values["params"], key)
        if not isinstance(params, Mapping):
            raise errors.ParamsError("encode to return a dict", errors.show(params), "name them")
        return params


def _pair(layer: Layer, names: tuple[str, ...], encode: Callable, decode: Callable) -> Layer:
    """`reparam` that encodes and decodes what stands under one of the names."""
    _check_names(names)

    def each(tree, fn):
        if not isinstance(tree, Mapping):
            return tree
        return {name: fn(v) if name in names else each(v, fn) for name, v in tree.items()}

    def encoded(params):
        _check_chosen(params, names)
        return each(params, encode)

    return reparam(layer, encoded, lambda params: each(params, decode))


def _check_names(names: Any) -> None:
    many = isinstance(names, (tuple, list)) and len(names) > 0
    if not many or not all(isinstance(name, str) for name in names):
        raise errors.OptionError(
            "names to be a tuple of strings", errors.show(names), "as names=('kernel',)"
        )


def _check_chosen(params: Any, names: tuple[str, ...]) -> None:
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    own = [jax.tree_util.keystr(path[-1:], simple=True) for path, _ in paths]
    if not set(own) & set(names):
        raise errors.OptionError(
            f"params called {errors.names(names)}",
            f"only {errors.names(dict.fromkeys(own))}",
            "say which to take, as names=('embedding',)",
        )


@errors.builder
def weight_norm(layer: Layer, names: tuple[str, ...] = ("kernel",)) -> Layer:
    """Length and direction of each weight vector apart: w = gain v / |v| (Salimans & Kingma, 2016).

    A vector is what one output feature is computed from: all axes of a kernel but the last. At
    first gain = |w| and v = w, so that the layer starts as it would without.

    - `names`: which params, by their own name; each becomes `{"gain", "direction"}`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> params, _ = weight_norm(fnn.dense(2)).init(jax.random.key(0), (1, 3))
    >>> jax.tree.map(jnp.shape, params["kernel"])
    {'direction': (3, 2), 'gain': (2,)}
    """

    def length(v):
        squares = jnp.square(v.astype(wide(v.dtype)))
        total = jnp.sum(squares, axis=tuple(range(v.ndim - 1)))
        zero = total == 0  # of which the root has no derivative
        return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, total)))

    def split(w):
        return {"gain": length(w).astype(w.dtype), "direction": w}

    def join(p):
        v, size = p["direction"], length(p["direction"])
        scale = p["gain"].astype(size.dtype) / jnp.where(size == 0, 1, size)
        return (v.astype(size.dtype) * scale).astype(v.dtype)

    return _pair(layer, names, split, join)


@errors.builder
def spectral_norm(
    layer: Layer, names: tuple[str, ...] = ("kernel",), *, iterations: int = 8
) -> Layer:
    """Divide each kernel by its largest singular value: w / sigma(w) (Miyato et al., 2018).

    The kernel is the matrix [everything else, features]. Sigma is found by power iteration, which
    the gradient treats as constant vectors: d sigma = u^T dw v.

    - `names`: which params, by their own name; they keep their shape.
    - `iterations`: of the power method, from the column of ones on. More are closer to sigma; the
      estimate is never above it.

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

    def divide(w):
        matrix = w.reshape(-1, w.shape[-1]).astype(wide(w.dtype))
        fixed = jax.lax.stop_gradient(matrix)
        v = unit(jnp.ones(matrix.shape[1], matrix.dtype))
        v = jax.lax.fori_loop(0, iterations, lambda _, v: unit(fixed.T @ (fixed @ v)), v)
        sigma = unit(fixed @ v) @ matrix @ v
        return (matrix / jnp.where(sigma == 0, 1, sigma)).astype(w.dtype).reshape(w.shape)

    return _pair(layer, names, lambda w: w, divide)


@errors.builder
def lora(layer: Layer, rank: int, names: tuple[str, ...] = ("kernel",), *, alpha=None) -> Layer:
    """Low-rank adaptation: w = w0 + (alpha / rank) a b, with w0 frozen (Hu et al., 2022).

    Params become `{"base", "a", "b"}`: `base` are the layer's own, which get no gradient; `a`
    [everything else, rank] and `b` [rank, features] stand at the paths of the adapted kernels. At
    first b is zero, so that the layer starts as base. To adapt trained params:
    `params = {**params, "base": trained}`.

    - `rank`: of the change.
    - `names`: which params are adapted, by their own name.
    - `alpha`: scales the change; None is `rank`, so that it is not scaled.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = lora(fnn.dense(8), 2)
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> jax.tree.map(jnp.shape, (params["a"], params["b"]))
    ({'kernel': (4, 2)}, {'kernel': (2, 8)})
    """
    rank = checks.count("rank", rank)
    _check_names(names)
    if alpha is not None:
        checks.number("alpha", alpha, -math.inf, math.inf)

    def draw(tree, key):
        """The `a` of every chosen kernel, at its path."""
        drawn = {}
        for name, w in tree.items():
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            if name in names:
                shape = (w.size // max(w.shape[-1], 1), rank)
                drawn[name] = normal(rank**-0.5)(own, shape, w.dtype)
            elif isinstance(w, Mapping) and (below := draw(w, own)):
                drawn[name] = below
        return drawn

    def start(a, w):
        if isinstance(a, Mapping):
            return {name: start(a[name], w[name]) for name in a}
        return jnp.zeros((rank, w.shape[-1]), w.dtype)

    def encode(params, key):
        _check_chosen(params, names)
        a = draw(params, key)
        return {"base": params, "a": a, "b": start(a, params)}

    def adapted(w, a, b):
        if isinstance(a, Mapping):
            return {k: adapted(v, a[k], b[k]) if k in a else v for k, v in w.items()}
        scale = jnp.asarray(1 if alpha is None else alpha / rank, w.dtype)
        return w + (a @ b * scale).reshape(w.shape)

    def decode(params):
        base = jax.tree.map(jax.lax.stop_gradient, params["base"])
        return adapted(base, params["a"], params["b"])

    return reparam(layer, encode, decode)


@errors.builder
def prune(layer: Layer, fraction, names: tuple[str, ...] = ("kernel",)) -> Layer:
    """Hold the smallest weights at zero: w = mask * w (magnitude pruning; Han et al., 2015).

    The mask is drawn up once, from the first params, and stands beside each weight:
    `{"value", "mask"}`. To prune trained params anew, encode them: `prune(...)` of the trained
    network's values is `{"value": w, "mask": abs(w) > threshold}`.

    - `fraction`: of each array that is set to zero, the smallest in magnitude, in [0, 1].
    - `names`: which params, by their own name.

    >>> import jax, jax.numpy as jnp, fnn
    >>> params, _ = prune(fnn.dense(4), 0.75).init(jax.random.key(0), (1, 4))
    >>> int(params["kernel"]["mask"].sum())
    4
    """
    checks.number("fraction", fraction, 0.0, 1.0)

    def encode(w):
        rank = jnp.argsort(jnp.argsort(jnp.abs(w).reshape(-1)))
        kept = rank >= jnp.round(jnp.asarray(fraction) * w.size).astype(rank.dtype)
        return {"value": w, "mask": kept.reshape(w.shape).astype(w.dtype)}

    def decode(p):
        mask = jax.lax.stop_gradient(p["mask"])
        return jnp.where(mask != 0, p["value"], jnp.zeros_like(p["value"]))

    return _pair(layer, names, encode, decode)


@errors.builder
def quantize(layer: Layer, bits: int = 8, names: tuple[str, ...] = ("kernel",)) -> Layer:
    """Weights rounded to 2^bits - 1 levels, with the gradient of the unrounded ones.

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
        raise errors.OptionError("bits of at most 32", f"{bits}", "float32 tells no more levels")

    def rounded(w):
        if w.size == 0:
            return w
        value = w.astype(wide(w.dtype))
        largest = jnp.max(jnp.abs(value), axis=tuple(range(w.ndim - 1)))
        step = jnp.where(largest == 0, 1, largest / (2 ** (bits - 1) - 1))
        return _straight_through(w, (jnp.round(value / step) * step).astype(w.dtype))

    return _pair(layer, names, lambda w: w, rounded)


@jax.custom_jvp
def _straight_through(w: jax.Array, near: jax.Array) -> jax.Array:
    """`near`, with the derivatives of w."""
    return near


@_straight_through.defjvp
def _straight_through_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return primals[1], tangents[0]
