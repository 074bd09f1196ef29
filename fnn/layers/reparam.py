"""Reparametrized layers, which learn other params than they compute with.

Weight and spectral norm, LoRA, pruning and quantization are each a pair of functions for `reparam`.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors, trees
from fnn.core.declarations import Derived, arrays_of, declared, output_axis
from fnn.core.inputs import arity, signature
from fnn.core.layer import Layer, as_layer, outline
from fnn.core.origins import builder
from fnn.core.shapes import from_numpy, struct
from fnn.core.types import Tree
from fnn.core.wrapping import wrap


@builder
def reparam(layer: Layer | Callable, encode: Callable, decode: Callable) -> Layer:
    """The layer over other parameters: y = layer(decode(params), x).

    - `encode(params)`, or `encode(params, key)` if it draws: from the layer's own first params to
      the new ones, a nested dict.
    - `decode(params)`: back to the layer's params; it is part of the network, and differentiated.

    The layer's params are drawn as without `reparam`, then encoded. To start from trained ones,
    `fnn.unmerge` them; `fnn.merge` is the inverse. Wrap a layer, or a whole network; inside
    `repeat`, every member is encoded on its own. Raises ParamsError for params unlike those that
    encode gives.

    >>> import jax, jax.numpy as jnp, fnn
    >>> double = reparam(fnn.dense(2), lambda p: {"half": p}, lambda p: p["half"])
    >>> params, _ = double.init(jax.random.key(0), (1, 3))
    >>> jax.tree.map(jnp.shape, params)
    {'half': {'bias': (2,), 'kernel': (3, 2)}}
    """
    for name, fn in (("encode", encode), ("decode", decode)):
        checks.function(name, fn, "params")
    keyed = arity(signature(encode))[0] > 1
    return over_params(as_layer(layer), lambda specs: (encode, decode), keyed=keyed)


def over_params(
    layer: Layer, functions: Callable, *, keyed: bool = False, axes: dict | None = None
) -> Layer:
    """`reparam` whose two functions depend on the declarations of the layer's params.

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

    def __call__(self, *values: Any) -> Tree:
        params = self.encode(*values)
        if not isinstance(params, Mapping):
            raise errors.ParamsError("encode to return a dict", errors.show(params), "name them")
        return params


def over_named(
    layer: Layer, names: tuple[str, ...], encode: Callable, decode: Callable, axes: Any = None
) -> Layer:
    """`reparam` of the params with one of these names.

    `encode(w, axis)` and `decode(p, axis)` get the axis of w that counts output features.
    """
    check_param_names(names)

    def functions(specs):
        outputs = output_axes(specs)

        def each(fn, tree, path=""):
            if not isinstance(tree, Mapping):
                return tree
            out = {}
            for name, w in tree.items():
                below = f"{path}/{name}"
                out[name] = fn(w, outputs[below]) if name in names else each(fn, w, below)
            return out

        def encoded(params):
            check_chosen(params, names)
            return each(encode, params)

        return encoded, functools.partial(each, decode)

    return over_params(as_layer(layer), functions, axes=axes)


def output_axes(specs: Tree) -> dict[str, int]:
    """The axis of each param that counts its output features, by path."""
    leaves = jax.tree_util.tree_flatten_with_path(specs)[0]
    return {f"/{errors.path_of(keys)}": output_axis(param) for keys, param in leaves}


def outputs_last(w: jax.Array, axis: int) -> jax.Array:
    """w with its output features as last axis."""
    return jnp.moveaxis(w, axis, -1)


def other_axes(w: jax.Array, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(w.ndim) if i != axis)


def along_axis(v: jax.Array, axis: int, ndim: int) -> jax.Array:
    """[features] -> `ndim` axes, to be multiplied with a kernel."""
    return v.reshape(*(-1 if i == axis else 1 for i in range(ndim)))


def check_param_names(names: Any) -> None:
    many = isinstance(names, (tuple, list)) and len(names) > 0
    if not many or not all(isinstance(name, str) for name in names):
        raise errors.OptionError(
            "names to be a tuple of strings", errors.show(names), "as names=('kernel',)"
        )


def check_chosen(params: Tree, names: tuple[str, ...]) -> None:
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    own = [jax.tree_util.keystr(path[-1:], simple=True) for path, _ in paths]
    if not set(own) & set(names):
        raise errors.OptionError(
            f"params called {errors.names(names)}",
            f"only {errors.names(dict.fromkeys(own))}",
            "say which to take, as names=('embedding',)",
        )
