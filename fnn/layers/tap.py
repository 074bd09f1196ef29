"""Layers of a network replaced, and their outputs recorded."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import jax
import jax.core

from fnn.core import checks, errors, trees
from fnn.core.declarations import Param, zeros_of
from fnn.core.layer import Layer, as_layer, inputs_of, outline, same_arrays, traced
from fnn.core.reserved import without, without_here
from fnn.core.shapes import from_numpy
from fnn.core.types import Tree
from fnn.core.wrapping import wrap
from fnn.initializers import zeros

SEEN = "(seen)"  # no name that a layer can have


@errors.named
def swap(net: Layer, replacements: Mapping[str, Layer | Callable]) -> Layer:
    """The network with some of its layers replaced.

    - `replacements`: layers or plain functions by path; a path may be a pattern, in which `*`
      stands for anything, slashes included.

    The params of other layers keep their names. Raises OptionError for a path that no layer has.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.serial(fnn.dense(8), jax.nn.relu, fnn.dense(3))
    >>> fnn.swap(net, {"relu_*": jnp.tanh, "dense2": fnn.dense(5)})
    serial(dense1=dense, relu_1=tanh, dense2=dense)
    """
    checks.mapping("replacements", replacements)
    unused = dict(replacements)
    paths = []

    def fn(path, layer):
        paths.append(path)
        for pattern, new in replacements.items():
            if fnmatchcase(path, pattern):
                unused.pop(pattern, None)
                with errors.at(path):
                    return as_layer(new)
        return layer

    swapped = as_layer(net).map(fn)
    _all_found(unused, paths)
    return swapped


@errors.named
def tap(net: Layer, *patterns: str) -> Layer:
    """The network with a pair as its output: its own, and those of chosen layers.

        y, outputs = tap(net, "conv*")(params, *xs, state=state)
        (y, outputs), state = tap(net, "conv*").apply(params, state, *xs, key=key, train=True)

    - `patterns`: paths of layers, in which `*` stands for anything, slashes included; none means
      all layers.

    `outputs` is `{path: output}`, in the order of paths in the network; inside `repeat` and
    `ensemble`, with their axis first. For a layer called twice it is the last output. The result
    takes the network's params and state, and is a layer like it: it can be jitted and
    differentiated, and in training it returns the new state. Raises OptionError for a pattern that
    no layer has, TransformError for a layer inside a transform that a body opens.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.serial(fnn.dense(8), jax.nn.relu, fnn.dense(3))
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> y, outputs = fnn.tap(net, "dense*")(params, jnp.ones((2, 4)))
    >>> jax.tree.map(jnp.shape, outputs)
    {'dense1': (2, 8), 'dense2': (2, 3)}
    """
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise errors.OptionError("patterns that are strings", errors.show(pattern), 'as "*"')
    unused, paths = dict.fromkeys(patterns), []

    def chosen(path: str) -> bool:
        paths.append(path)
        hits = [pattern for pattern in patterns if fnmatchcase(path, pattern)]
        for pattern in hits:
            unused.pop(pattern, None)
        return bool(hits) or not patterns

    @lru_cache(maxsize=2)
    def tapped_of(net):
        return net.map(lambda path, layer: watched(layer) if chosen(path) else layer)

    net = as_layer(net)
    tapped_of(net)
    _all_found(unused, paths)

    def apply(net, params, state, *xs, key, train):
        with errors.within("tap"):
            tapped = tapped_of(net)
            _, declared = tapped.specs(*jax.tree.map(from_numpy, xs))
            before = with_room(state, declared, "state")
        y, after = tapped.apply(params, before, *xs, key=key, train=train)
        seen, after = dict(collected(after)), without(SEEN, after)
        return (y, seen), state if same_arrays(state, after) else after

    return wrap(net, apply)


def watched(layer: Layer, what: Callable = lambda params, state, xs, y: y) -> Layer:
    """The layer with what is to be seen of a call, its output, in its state."""

    def declare(*xs):
        (params, state), y = outline(layer, xs)
        seen = what(*zeros_of((params, state)), xs, y)
        return (params, {**state, SEEN: declared_like(seen)}), y

    def apply(params, state, *xs, key=None, train=False):
        before = without_here(SEEN, state)
        y, state = layer.apply(params, before, *xs, key=key, train=train)
        return y, {**state, SEEN: what(params, before, xs, y)}

    return replace(layer, specs=traced(declare, inputs_of(layer)), apply=apply)


# --- trees with room for the recorded outputs


def declared_like(arrays: Tree) -> Tree:
    return jax.tree.map(lambda a: Param(a.shape, zeros, a.dtype), arrays)


def with_room(tree: Tree, declared: Tree, what: str) -> Tree:
    """A tree of params or state, with zeros where recorded outputs are declared."""
    if not isinstance(declared, Mapping):
        return tree
    if not isinstance(tree, Mapping):
        trees.check_names(what, tree, declared)
    room = {}
    for name, spec in declared.items():
        if name == SEEN:
            room[name] = zeros_of(spec)
        elif name in tree:
            with errors.at(name):
                room[name] = with_room(tree[name], spec, what)
        elif below := with_room({}, spec, what):
            room[name] = below
    return {**tree, **room}


def collected(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if name == SEEN:
            yield path, value
        elif isinstance(value, Mapping):
            yield from collected(value, f"{path}/{name}" if path else name)


def _all_found(unused: Mapping[str, Any], paths: list[str]) -> None:
    if unused:
        known = [path for path in paths if path]
        raise errors.OptionError(
            f"paths of layers, among {errors.names(known)}",
            errors.names(unused),
            "see fnn.analysis.summary",
        )
