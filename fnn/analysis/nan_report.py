"""Where a network first has a value that is not finite, by probes around its layers.

State is the one side channel of a layer, so each probe returns what it sees as state: out of
`repeat` and `ensemble` it comes stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.declarations import Param, arrays_of
from fnn.core.dtypes import is_floating, wide
from fnn.core.layer import Layer, as_layer, inputs_of, outline, traced
from fnn.core.reserved import FROZEN, map_under, without_here
from fnn.core.shapes import from_numpy
from fnn.core.types import Key, Tree
from fnn.initializers import zeros
from fnn.layers.frozen import held_in, joined
from fnn.layers.tap import SEEN, declared_like, with_room


class NotFinite(NamedTuple):
    """Where a network first has a value that is not finite; `str` gives it as a sentence.

    - `path`: of the layer, "" for the whole network.
    - `tensor`: "input", "output", "gradient of output", "gradient of input", or the path of one of
      the layer's params, "kernel" or "gradient of kernel".
    - `member`: which copy, in `repeat` or `ensemble`; () if there is only one.
    - `nan`, `inf`, `size`: the numbers of its NaN, of its infinities and of all its values.
    """

    path: str
    tensor: str
    member: tuple[int, ...]
    nan: int
    inf: int
    size: int

    def __str__(self) -> str:
        where = self.path or "the network"
        member = f" (member {', '.join(map(str, self.member))})" if self.member else ""
        return f"{where}{member}: {self.tensor} has {self.nan} NaN, {self.inf} inf of {self.size}"


@errors.named
def nan_report(
    net: Layer,
    params: Tree,
    *xs: Any,
    state: Tree = None,
    key: Key | None = None,
    train: bool = False,
    loss: Callable[[Any], Any] | None = None,
) -> NotFinite | None:
    """The first tensor that is not finite, forwards and then backwards; None if all are finite.

    It checks each layer's params, inputs and output in the order of calls; then, in reverse order,
    the gradients of its output, params and inputs. If a layer's input is reported, the fault lies
    in the body around that layer; if its params, output or input gradient, in the layer itself.

    - `xs`, `state`, `key`, `train`: of the call to check.
    - `loss(y)`: a scalar function of the output, whose gradient is checked; None is the sum.

    Layers inside a transform that a body opens (`scan`, `vmap` ...) are reported as part of that
    body. The report runs eagerly and is slow.

    >>> import fnn
    >>> net = fnn.serial(fnn.dense(3), jnp.log)
    >>> params = {"dense1": {"kernel": -jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    >>> print(fnn.analysis.nan_report(net, params, jnp.ones((1, 2))))
    log_1: output has 3 NaN, 0 inf of 3
    """
    hidden: set[str] = set()
    while True:
        try:
            with jax.debug_nans(False), jax.debug_infs(False):
                return _report(as_layer(net), params, xs, state, key, train, loss, hidden)
        except errors.TransformError as error:
            if not error.path or error.path in hidden:
                raise
            hidden.add(error.path)


def _report(net, params, xs, state, key, train, loss, hidden) -> NotFinite | None:
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((params, xs, state))):
        raise errors.InputError("arrays with values", "traced arrays", "call it outside jit")
    if loss is not None:
        checks.function("loss", loss, "y")
    order: dict[str, Layer] = {}  # by path, in the order in which their calls end

    def probe(path, layer):
        if any(path == h or path.startswith(f"{h}/") for h in hidden):
            return layer
        return _probed(layer, lambda: order.setdefault(path, layer))

    probed = net.map(probe)
    xs = jax.tree.map(from_numpy, xs)
    params_spec, state_spec = probed.specs(*xs)
    before = with_room({} if state is None else state, state_spec, "state")
    room = with_room(params, params_spec, "params")

    def run(params):
        y, after = probed.apply(params, before, *xs, key=key, train=train)
        value = _total(y) if loss is None else loss(y)
        if jnp.shape(value) != ():
            raise errors.ShapeError("a scalar loss", errors.show(value), "sum it, or average it")
        return value, after

    value, pull, after = jax.vjp(run, room, has_aux=True)
    (grads,) = pull(jnp.ones_like(value))

    forward, backward = _tensors("", "input", xs, 0), []
    for path, layer in order.items():
        stacked = len(_at(state_spec, path)[SEEN]["depth"].stack)
        seen, moved = _at(after, path)[SEEN], _at(grads, path).get(SEEN, {})
        leaf = not layer.children
        trees = joined(params, held_in(state or {})), grads
        own = [without_here(SEEN, _at(tree, path)) for tree in trees]
        if leaf:
            forward += _tensors(path, "", own[0], stacked)
            forward += _tensors(path, "input", seen["input"], stacked)
        forward += _tensors(path, "output", seen["output"], stacked)
        gradients = _tensors(path, "gradient of output", moved.get("output"), stacked)
        if leaf:
            gradients += _tensors(path, "gradient of ", own[1], stacked)
            gradients += _tensors(path, "gradient of input", moved.get("input"), stacked)
        backward = gradients + backward
    return _first(forward, min) or _first(backward, max)


def _probed(layer: Layer, note: Callable[[], Any]) -> Layer:
    """The layer with zeros added to its inputs and outputs, to differentiate by."""

    def declare(*xs):
        (params, state), y = outline(layer, xs)
        note()
        if layer.carry and xs[0] is None:  # the first carry, which has the shapes of the next
            xs = (y[0], *xs[1:])
        room = {"input": _floats(xs), "output": _floats(y)}
        room, params = declared_like(room), declared_like(arrays_of(params))
        state = map_under(FROZEN, lambda specs: declared_like(arrays_of(specs)), state)
        return ({**params, SEEN: room}, {**state, SEEN: {**room, "depth": Param((), zeros)}}), y

    def apply(params, state, *xs, key=None, train=False):
        zero, depth = params[SEEN], state[SEEN]["depth"]
        params, state = without_here(SEEN, params), without_here(SEEN, state)
        if layer.carry and xs[0] is None:
            xs = (layer.carry(params, *xs[1:], key=key, train=train), *xs[1:])
        xs = _plus(xs, zero["input"])
        y, state = layer.apply(params, state, *xs, key=key, train=train)
        y = _plus(y, zero["output"])
        seen = {"input": _floats(xs), "output": _floats(y), "depth": depth}
        return y, {**state, SEEN: seen}

    return replace(layer, specs=traced(declare, inputs_of(layer)), apply=apply)


def _at(tree: Tree, path: str) -> Mapping[str, Any]:
    """The subtree at a path; {} if a reparametrization has renamed it."""
    for name in filter(None, path.split("/")):
        tree = tree.get(name, {}) if isinstance(tree, Mapping) else {}
    return tree if isinstance(tree, Mapping) else {}


def _floats(tree: Tree) -> dict[str, Any]:
    """The arrays of floating dtype, numbered."""
    return {str(i): x for i, x in enumerate(jax.tree.leaves(tree)) if is_floating(x)}


def _plus(tree: Tree, zero: Mapping[str, Any]) -> Tree:
    leaves, treedef = jax.tree.flatten(tree)
    moved = [x + zero[str(i)] if str(i) in zero else x for i, x in enumerate(leaves)]
    return jax.tree.unflatten(treedef, moved)


def _total(y: Tree) -> jax.Array:
    return sum((jnp.sum(x.astype(wide(x.dtype))) for x in _floats(y).values()), jnp.zeros(()))


# --- the search for values that are not finite


def _tensors(path: str, name: str, tree: Tree, stacked: int) -> list[tuple]:
    """(path, tensor, array, its number of leading member axes) for each floating array."""
    found = []
    for where, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        own = errors.path_of(where)
        tensor = name if name and not name.endswith("of ") else name + own
        if is_floating(x):
            found.append((path, tensor, x, stacked))
    return found


def _first(tensors: list[tuple], which: Callable) -> NotFinite | None:
    """The first tensor that is not finite; in a stack, of the member chosen by `which`."""
    bad: list[tuple] = []
    depth = None
    for path, tensor, x, stacked in tensors:
        if bad and (stacked != depth or not stacked):
            break
        members = ~jnp.isfinite(x).reshape(*x.shape[:stacked], -1).all(-1)
        if members.any():
            depth = stacked
            member = which(map(tuple, np.argwhere(members).tolist()))
            bad.append((member, path, tensor, x[member]))
    if not bad:
        return None
    chosen = which(member for member, *_ in bad)
    _, path, tensor, x = next(entry for entry in bad if entry[0] == chosen)
    nan, inf = int(jnp.isnan(x).sum()), int(jnp.isinf(x).sum())
    return NotFinite(path, tensor, chosen, nan, inf, x.size)
