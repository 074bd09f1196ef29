"""The params of a reparametrized network as those of the plain one, and back."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax

from fnn.core import checks, errors, trees
from fnn.core.declarations import Derived, arrays_of, plain_specs, plain_values
from fnn.core.layer import Layer
from fnn.core.names import folded
from fnn.core.reserved import FROZEN, is_under, without
from fnn.core.types import Key, Tree
from fnn.layers.frozen import held_in, joined


@errors.named
def merge(net: Layer, params: Tree, state: Tree, *xs: Any, **inputs: Any) -> tuple[Tree, Tree]:
    """Plain (params, state) of a network whose layers are reparametrized or frozen.

    `lora`'s change is added to its base, `weight_norm` multiplied out, `spectral_norm` divided by,
    `prune` masked, `quantize` rounded and `stored` ones computed, as in the network; `frozen`
    params return to the params.
    The result fits the network built without these, with the same outputs.

    - `xs`: inputs as in `net.init`; shapes suffice.

    Raises ParamsError for params that are not this network's, and for a reparametrization around
    frozen or reparametrized params, which cannot be distinguished.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.lora(fnn.dense(3), 2)
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> plain, _ = fnn.merge(net, params, state, (1, 4))
    >>> x = jnp.ones((2, 4))
    >>> bool(jnp.allclose(fnn.dense(3)(plain, x), net(params, x, state=state)))
    True
    """
    specs = net.specs(*xs, **inputs)
    state = {} if state is None else state
    for what, tree, spec in zip(("params", "state"), (params, state), specs, strict=True):
        trees.check_same(what, tree, arrays_of(spec))
    declared = _whole(specs)
    return plain_values(declared, joined(params, held_in(state))), without(FROZEN, state)


@errors.named
def unmerge(
    net: Layer, params: Tree, state: Tree, *xs: Any, key: Key | None = None, **inputs: Any
) -> tuple[Tree, Tree]:
    """(params, state) of a reparametrized or frozen network, from those of the plain one.

    The inverse of `merge`, and the way to start from trained params: they become the base of
    `lora`, the first values of `weight_norm`, the params that `frozen` holds.

    - `params`, `state`: of the network without `lora`, `frozen` and the like, with the same names.
    - `xs`: inputs as in `net.init`; shapes suffice.
    - `key`: for those that draw values of their own, such as `lora`.

    Raises ParamsError for params that are not those of the plain network, RandomKeyError for a
    missing key.

    >>> import jax, jax.numpy as jnp, fnn
    >>> plain, _ = fnn.dense(3).init(jax.random.key(0), (1, 4))
    >>> net = fnn.lora(fnn.dense(3), 2)
    >>> params, state = unmerge(net, plain, {}, (1, 4), key=jax.random.key(1))
    >>> jax.tree.map(jnp.shape, params)
    {'a': {'kernel': (4, 2)}, 'b': {'kernel': (2, 3)}}
    """
    if key is not None:
        key = checks.typed_key(key)
    specs = net.specs(*xs, **inputs)
    state = {} if state is None else state
    declared = _whole(specs)
    mend = "take params from net.init of the plain network, without frozen, lora and their like"
    trees.check_same("params", params, arrays_of(plain_specs(declared)), mend)
    trees.check_same("state", state, arrays_of(without(FROZEN, specs[1])))
    whole = _forth(declared, params, key)
    learnt = _only(arrays_of(specs[0]), whole)
    return learnt, _with_held(arrays_of(specs[1]), state, whole)


def _whole(specs: tuple[Tree, Tree]) -> Tree:
    """The declarations of all params, frozen ones too."""
    return joined(specs[0], held_in(specs[1]))


def _forth(node: Tree, value: Tree, key: Any, path: str = "") -> Tree:
    if isinstance(node, Mapping):
        return {
            name: _forth(below, value[name], key, f"{path}/{name}") for name, below in node.items()
        }
    if not isinstance(node, Derived) or node.inverse is None:
        return value
    values, fn = _forth(node.specs, value, key, path), cast(Callable, node.fn)
    if not node.keyed:
        return fn(values)
    checks.need_key(key)
    own = folded(key, path)
    return fn(values, jax.random.split(own, node.stack) if node.stack else own)


def _only(like: Tree, tree: Tree) -> Tree:
    """The part of a tree at the paths of another."""
    if isinstance(like, Mapping):
        return {name: _only(below, tree[name]) for name, below in like.items()}
    return tree


def _with_held(like: Tree, state: Tree, whole: Tree) -> Tree:
    """A state with the frozen ones of the params `whole` in their places."""
    if not isinstance(like, Mapping):
        return state
    out = {}
    for name, below in like.items():
        if is_under(FROZEN, name):
            out[name] = _only(below, whole)
        else:
            inner = whole.get(name, {}) if isinstance(whole, Mapping) else {}
            out[name] = _with_held(below, state.get(name, {}), inner)
    return out
