"""Layers over other parameters: what is learned is not what the layer computes with.

`reparam` says how to get from one to the other. Weight and spectral norm, LoRA, pruning and
quantization are each a pair of functions given to it.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors, trees
from fnn.core.declarations import Derived, arrays_of, declared, output_axis
from fnn.core.dtypes import wide
from fnn.core.inputs import arity, signature
from fnn.core.layer import Layer, as_layer, outline
from fnn.core.lengths import as_length, divide, exponent, length_over, scaled, times_power, value
from fnn.core.shapes import from_numpy, struct
from fnn.core.wrapping import wrap
from fnn.initializers import normal
from fnn.layers.frozen import hold

__all__ = ["lora", "prune", "quantize", "reparam", "spectral_norm", "weight_norm"]


@errors.builder
def reparam(layer: Layer | Callable, encode: Callable, decode: Callable) -> Layer:
    """The layer over other parameters: y = layer(decode(params), x).

    - `encode(params)`, or `encode(params, key)` if it draws: from the layer's own first params to
      the new ones, a nested dict.
    - `decode(params)`: back to what the layer computes with; it is part of the network, and
      differentiated.

    The layer's params are drawn as they would be without `reparam`, then encoded. To start from
    trained ones, `fnn.unmerge` them; `fnn.merge` is the way back. Wrap a layer, or a whole network;
    inside `repeat`, every member is encoded by itself. Raises ParamsError for params that are not
    what encode gives.

    >>> import jax, jax.numpy as jnp, fnn
    >>> double = reparam(fnn.dense(2), lambda p: {"half": p}, lambda p: p["half"])
    >>> params, _ = double.init(jax.random.key(0), (1, 3))
    >>> jax.tree.map(jnp.shape, params)
    {'half': {'bias': (2,), 'kernel': (3, 2)}}
    """
    for name, fn in (("encode", encode), ("decode", decode)):
        checks.function(name, fn, "params")
    keyed = arity(signature(encode))[0] > 1
    return _over(as_layer(layer), lambda specs: (encode, decode), keyed=keyed)


def _over(layer: Layer, functions: Callable, *, keyed: bool = False, axes: Any = None) -> Layer:
    """`reparam`, whose two functions may depend on what the layer's params are declared to be.

    `functions(declared)` gives `(encode, decode)`, for a tree of Param like the params.
    """

    def declare(layer, *xs):
        (params, state), y = outline(layer, xs)
        encode, decode = functions(declared(params))
        node = Derived(Encoded(encode), params, inverse=decode, axes=axes, keyed=keyed)
        return (node, state), y

    @functools.lru_cache(maxsize=32)
    def found(layer, treedef, structs):
        """The arrays that encode gives, and decode, for such inputs."""
        params = layer.specs(*jax.tree.unflatten(treedef, structs))[0]
        encode, decode = functions(declared(params))
        return arrays_of(Derived(Encoded(encode), params, keyed=keyed)), decode

    def of_inputs(layer, xs):
        structs, treedef = jax.tree.flatten(jax.tree.map(struct, xs))
        return found(layer, treedef, tuple(structs))

    def apply(layer, params, state, *xs, key, train):
        with errors.within(layer.name):
            params, xs = jax.tree.map(from_numpy, (params, xs))
            wanted, decode = of_inputs(layer, xs)
            trees.check_same("params", params, wanted)
            return layer.apply(decode(params), state, *xs, key=key, train=train)

    def carry(layer, params, x, **mode):
        assert layer.carry is not None
        return layer.carry(of_inputs(layer, (None, x))[1](params), x, **mode)

    return wrap(layer, apply, declare=declare, carry=layer.carry and carry)


@dataclass(frozen=True)
class Encoded:
    """`encode`, whose result is a dict; hashable."""

    encode: Callable

    def __call__(self, *values: Any) -> Any:
        params = self.encode(*values)
        if not isinstance(params, Mapping):
            raise errors.ParamsError("encode to return a dict", errors.show(params), "name them")
        return params


def _pair(
    layer: Layer, names: tuple[str, ...], encode: Callable, decode: Callable, axes: Any = None
) -> Layer:
    """`reparam` that encodes and decodes what stands under one of the names.

    `encode(w, axis)` and `decode(p, axis)` get the axis of w that counts output features.
    """
    _check_names(names)

    def functions(specs):
        outputs = _output_axes(specs)

        def each(fn, tree, path=""):
            if not isinstance(tree, Mapping):
                return tree
            out = {}
            for name, w in tree.items():
                below = f"{path}/{name}"
                out[name] = fn(w, outputs[below]) if name in names else each(fn, w, below)
            return out

        def encoded(params):
            _check_chosen(params, names)
            return each(encode, params)

        return encoded, functools.partial(each, decode)

    return _over(as_layer(layer), functions, axes=axes)


def _output_axes(specs: Any) -> dict[str, int]:
    """The axis of each param that counts its output features, by path."""
    leaves = jax.tree_util.tree_flatten_with_path(specs)[0]
    return {f"/{errors.path_of(keys)}": output_axis(param) for keys, param in leaves}


def _last(w: jax.Array, axis: int) -> jax.Array:
    """The output features as last axis."""
    return jnp.moveaxis(w, axis, -1)


def _others(w: jax.Array, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(w.ndim) if i != axis)


def _along(v: jax.Array, axis: int, ndim: int) -> jax.Array:
    """[features] -> as many axes as the kernel has, to be multiplied with it."""
    return v.reshape(*(-1 if i == axis else 1 for i in range(ndim)))


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

    A vector is what one output feature is computed from: all axes of a kernel but that of its
    outputs, as `Param.axes` names it. At first gain = |w| and v = w, so that the layer starts as it
    would without.

    - `names`: which params, by their own name; each becomes `{"gain", "direction"}`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> params, _ = weight_norm(fnn.dense(2)).init(jax.random.key(0), (1, 3))
    >>> jax.tree.map(jnp.shape, params["kernel"])
    {'direction': (3, 2), 'gain': (2,)}
    """

    def length(v, axis):
        return length_over(v.astype(wide(v.dtype)), _others(v, axis))

    def split(w, axis):
        return {"gain": value(length(w, axis)).reshape(-1).astype(w.dtype), "direction": w}

    def join(p, axis):
        v, size = p["direction"], length(p["direction"], axis)
        dtype = size.root.dtype
        unit = scaled(v.astype(dtype), as_length(1.0, dtype), size)
        return (unit * _along(p["gain"].astype(dtype), axis, v.ndim)).astype(v.dtype)

    return _pair(layer, names, split, join, {"gain": ("out",)})


@errors.builder
def spectral_norm(
    layer: Layer, names: tuple[str, ...] = ("kernel",), *, iterations: int = 8
) -> Layer:
    """Divide each kernel by its largest singular value: w / sigma(w) (Miyato et al., 2018).

    The kernel is the matrix [everything else, features]. Sigma is found by power iteration, which
    the gradient treats as constant vectors: d sigma = u^T dw v. It starts from a vector of fixed
    normal draws: one of a simple form, such as ones, is orthogonal to the largest singular vector
    of many a kernel that is simple as well (antisymmetric, centred, a Sobel filter), and then
    never finds it.

    - `names`: which params, by their own name; they keep their shape.
    - `iterations`: of the power method. More are closer to sigma; the estimate is never above it.

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
        last = _last(w, axis)
        matrix = last.reshape(-1, last.shape[-1]).astype(wide(w.dtype))
        matrix = times_power(matrix, -exponent(jnp.max(jnp.abs(matrix), initial=0)))
        fixed = jax.lax.stop_gradient(matrix)
        v = unit(jnp.asarray(_start(matrix.shape[1]), matrix.dtype))
        v = jax.lax.fori_loop(0, iterations, lambda _, v: unit(fixed.T @ (fixed @ v)), v)
        sigma = unit(fixed @ v) @ matrix @ v
        divided = (matrix / jnp.where(sigma == 0, 1, sigma)).astype(w.dtype)
        return jnp.moveaxis(divided.reshape(last.shape), -1, axis)

    return _pair(layer, names, lambda w, axis: w, normalized)


def _start(n: int) -> np.ndarray:
    """Normal values, always the same: orthogonal to next to nothing."""
    return np.random.default_rng(0).normal(size=n)


@errors.builder
def lora(layer: Layer, rank: int, names: tuple[str, ...] = ("kernel",), *, alpha=None) -> Layer:
    """Low-rank adaptation: w = w0 + (alpha / rank) a b, with w0 frozen (Hu et al., 2022).

    Params become `{"a", "b"}`: `a` [everything else, rank] and `b` [rank, features] stand at the
    paths of the adapted kernels. The layer's own params are frozen: they stand in the state, as
    `base` (see `fnn.frozen`), so that there is no gradient, no moment and no update of them. At
    first b is zero, so that the layer starts as base. To adapt trained params, `fnn.unmerge` them;
    `fnn.merge` adds what was learnt to them.

    - `rank`: of the change.
    - `names`: which params are adapted, by their own name.
    - `alpha`: scales the change; None is `rank`, so that it is not scaled.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = lora(fnn.dense(8), 2)
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> jax.tree.map(jnp.shape, params)
    {'a': {'kernel': (4, 2)}, 'b': {'kernel': (2, 8)}}
    >>> jax.tree.map(jnp.shape, state)
    {'(frozen)': {'base': {'bias': (8,), 'kernel': (4, 8)}}}
    """
    rank = checks.count("rank", rank)
    _check_names(names)
    if alpha is not None:
        checks.number("alpha", alpha, -math.inf, math.inf)

    def functions(specs):
        outputs = _output_axes(specs)

        def sizes(w, path):
            features = w.shape[outputs[path]]
            return w.size // max(features, 1), features

        def draw(tree, key, path=""):
            """The `a` of every chosen kernel, at its path."""
            drawn = {}
            for name, w in tree.items():
                own, below = jax.random.fold_in(key, zlib.crc32(name.encode())), f"{path}/{name}"
                if name in names:
                    shape = (sizes(w, below)[0], rank)
                    drawn[name] = normal(rank**-0.5)(own, shape, w.dtype)
                elif isinstance(w, Mapping) and (inner := draw(w, own, below)):
                    drawn[name] = inner
            return drawn

        def start(a, w, path=""):
            if isinstance(a, Mapping):
                return {name: start(a[name], w[name], f"{path}/{name}") for name in a}
            return jnp.zeros((rank, sizes(w, path)[1]), w.dtype)

        def encode(params, key):
            _check_chosen(params, names)
            a = draw(params, key)
            return {"base": params, "a": a, "b": start(a, params)}

        def adapted(w, a, b, path=""):
            if isinstance(a, Mapping):
                return {
                    k: adapted(v, a[k], b[k], f"{path}/{k}") if k in a else v for k, v in w.items()
                }
            last = _last(w, outputs[path])
            scale = jnp.asarray(1 if alpha is None else alpha / rank, w.dtype)
            return w + jnp.moveaxis((a @ b * scale).reshape(last.shape), -1, outputs[path])

        def decode(params):
            return adapted(params["base"], params["a"], params["b"])

        return encode, decode

    axes = {"a": ("in", "rank"), "b": ("rank", "out")}
    over = _over(as_layer(layer), functions, keyed=True, axes=axes)
    return hold(over, lambda path, kind: path == "base" or path.startswith("base/"))


@errors.builder
def prune(layer: Layer, fraction, names: tuple[str, ...] = ("kernel",)) -> Layer:
    """Hold the smallest weights at zero: w = mask * w (magnitude pruning; Han et al., 2015).

    Each weight becomes `{"value"}`; the mask is drawn up once, from the first params, and frozen:
    it stands in the state, as `mask` beside the value (see `fnn.frozen`). To prune trained params,
    `fnn.unmerge` them.

    - `fraction`: of each array that is set to zero, the smallest in magnitude, in [0, 1].
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

    return hold(_pair(layer, names, encode, decode), is_mask)


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

    def rounded(w, axis):
        if w.size == 0:
            return w
        wider = w.astype(wide(w.dtype))
        largest = jnp.max(jnp.abs(wider), axis=_others(w, axis))
        step = _along(largest / (2 ** (bits - 1) - 1), axis, w.ndim)
        return _straight_through(w, (jnp.round(divide(wider, step)) * step).astype(w.dtype))

    return _pair(layer, names, lambda w, axis: w, rounded)


@jax.custom_jvp
def _straight_through(w: jax.Array, near: jax.Array) -> jax.Array:
    """`near`, with the derivatives of w."""
    return near


@_straight_through.defjvp
def _straight_through_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return primals[1], tangents[0]
