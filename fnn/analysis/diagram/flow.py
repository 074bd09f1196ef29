"""The data flow of a network: its sublayers, and the values that pass from one to another.

It is read from the jaxpr of the network, in which each call of a layer runs under a scope of its
own and marks what it returns, so that layers that compute nothing stand there too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.ad_checkpoint import checkpoint_name

from fnn.analysis.diagram.graph import Call, Edge, Graph, Node, Value, join
from fnn.analysis.diagram.operations import label_of, moves_alone
from fnn.core import errors
from fnn.core.declarations import arrays_of, declared
from fnn.core.inputs import by_position
from fnn.core.layer import Layer, inputs_of
from fnn.core.shapes import as_struct
from fnn.core.types import Tree

_MARK = re.compile(r"fnn_call_(\d+)_")
_Place: TypeAlias = tuple[int | None, bool]  # the number of a call, and whether of its gradient


class Flow(NamedTuple):
    """What is shown of a network, all calls of its layers, and the declared params."""

    shown: Node
    calls: list[Call]
    params: Tree


def flow(net: Layer, xs: tuple, inputs: dict, depth: int, path: str, train: bool) -> Flow:
    """The flow through the layer at `path`, with bodies shown down to `depth` below it."""
    layers_inputs = inputs_of(net)
    xs = tuple(map(as_struct, by_position(layers_inputs, xs, inputs)))
    specs = net.specs(*xs)
    arrays = arrays_of(specs)
    calls, traced, y = _trace(net, arrays, xs, train)
    root = next((call for call in calls if call.path == path), None)
    if root is None:
        known = list(dict.fromkeys(call.path for call in calls if call.path))
        more = ["…"] if len(known) > 20 else []
        mend = f"choose one of {errors.names(known[:20] + more)}"
        raise errors.OptionError("the path of a layer of the network", repr(path), mend)
    found = _Builder(calls, root, depth)
    names = [*layers_inputs.parameters]
    given: list[tuple[Value, ...]] = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path((*arrays, xs, 0)):
        given.append(found.given(keys, leaf, names))
    sources = found.walk(traced.jaxpr, given, [True] * len(traced.jaxpr.outvars), (None, False))
    leaves = jax.tree_util.tree_leaves_with_path(y)
    for (keys, leaf), values in zip(leaves, sources, strict=True):
        name = errors.path_of(keys)
        name = f"y[{name}]" if name.isdigit() else name or "y"
        end = found.add("output", name, found.top)
        found.link(values, end, errors.show(leaf))
    return Flow(found.nodes[root.number, False] if path else found.top, calls, declared(specs[0]))


def _trace(net: Layer, arrays: Tree, xs: tuple, train: bool) -> tuple[list[Call], Any, Any]:
    """The calls of layers, the jaxpr of (params, state, xs, key), and what it returns."""
    calls: list[Call] = []
    around: list[int] = []

    def watch(path: str, layer: Layer) -> Layer:
        def apply(params, state, *xs, key=None, train=False, **named):
            call = Call(len(calls), path, layer, around[-1] if around else None)
            calls.append(call)
            around.append(call.number)
            try:
                with jax.named_scope(mark := f"fnn_call_{call.number}_"):
                    mode = {"key": key, "train": train}
                    y, state = layer.apply(params, state, *xs, **mode, **named)
                    if layer.name == "ensemble":
                        call.times = jax.tree.leaves(y)[0].shape[0]
                    return jax.tree.map(lambda a: checkpoint_name(a, mark), y), state
            finally:
                around.pop()

        return replace(layer, apply=apply)

    watched = net.map(watch)

    def run(params, state, xs, key):
        return watched.apply(params, state, *xs, key=key, train=train)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    traced, y = jax.make_jaxpr(run, return_shape=True)(*arrays, xs, key)
    return calls, traced, y


class _Builder:
    """A graph while the equations of a jaxpr are gone through, in their order."""

    def __init__(self, calls: list[Call], root: Call, depth: int):
        self.calls = calls
        parents = {call.parent for call in calls if call.parent is not None}
        above = self._chain(root.number)
        levels = {call.number: len(self._chain(call.number)) - len(above) for call in calls}
        self._open = {
            n for n in parents if n in above or levels[n] < depth and root.number in self._chain(n)
        }
        self.nodes: dict[_Place, Node] = {}
        self.top = Node("layer", "", graph=Graph())
        if 0 in self._open and calls[0].layer.name not in ("repeat", *_RECURRENT):
            self.nodes[0, False] = self.top
            self.top.call = calls[0]
        self._weights: dict[str, Value] = {}
        self._noise: dict[Node, Value] = {}

    def _chain(self, number: int | None) -> list[int]:
        """A call and those around it, the outermost first."""
        if number is None:
            return []
        return [*self._chain(self.calls[number].parent), number]

    def add(self, sort: str, label: str, scope: Node, call: Call | None = None) -> Node:
        node = Node(sort, label, scope, call)
        assert scope.graph is not None
        scope.graph.nodes.append(node)
        return node

    def given(self, keys: tuple, leaf: Any, names: list[str]) -> tuple[Value, ...]:
        """The source of an argument of the whole network."""
        part, *inner = keys
        if part.idx == 3:
            return (Value(Node("key", "random"), ""),)
        if part.idx == 2:
            i, inner = inner[0].idx, inner[1:]
            name = names[i] if i < len(names) else f"x{i + 1}"
            node = self.add("input", errors.path_in(name, inner), self.top)
            return (Value(node, errors.show(leaf)),)
        kind = "params" if part.idx == 0 else "state"
        return (Value(Node(kind, errors.path_of(inner)), errors.show(leaf)),)

    # --- going through the equations

    def walk(
        self, jaxpr: Any, given: Sequence[tuple], wanted: Sequence[bool], around: _Place
    ) -> list[tuple[Value, ...]]:
        """The sources of what a jaxpr returns; `around`: where it runs."""
        sources: dict[Any, tuple[Value, ...]] = dict(zip(jaxpr.invars, given, strict=True))
        needed = _needed(jaxpr, wanted)
        for eqn in jaxpr.eqns:
            if any(v in needed for v in eqn.outvars):
                inside = _inside_of(str(eqn.source_info.name_stack), around)
                used = [() if hasattr(v, "val") else sources.get(v, ()) for v in eqn.invars]
                made = self._equation(eqn, used, [v in needed for v in eqn.outvars], inside)
                sources.update(zip(eqn.outvars, made, strict=True))
        return [() if hasattr(v, "val") else sources.get(v, ()) for v in jaxpr.outvars]

    def _equation(
        self, eqn: Any, used: list[tuple], wanted: list[bool], inside: _Place
    ) -> list[tuple[Value, ...]]:
        place, opened = self._node(inside)
        self._loop(eqn, inside)
        if not opened:
            for values, v in zip(used, eqn.invars, strict=True):
                self.link(values, place, errors.show(v.aval))
            return [(Value(place, errors.show(v.aval)),) for v in eqn.outvars]
        everything = tuple(dict.fromkeys(value for values in used for value in values))
        data = [v for v in everything if v.maker.sort not in ("key", "params", "state")]
        inner = _inner(eqn, used)
        if inner and (data or _marked(eqn)) and (_marked(eqn) or label_of(eqn) is None):
            return self._inside(eqn, inner, wanted, inside)
        if not data or moves_alone(eqn, used):
            return [everything for _ in eqn.outvars]
        node = self.add("op", label_of(eqn) or eqn.primitive.name, place)
        for values, v in zip(used, eqn.invars, strict=True):
            self.link(values, node, errors.show(v.aval))
        return [(Value(node, errors.show(v.aval)),) for v in eqn.outvars]

    def _inside(
        self, eqn: Any, inner: list[tuple[Any, list]], wanted: list[bool], around: _Place
    ) -> list[tuple[Value, ...]]:
        """An equation that runs jaxprs: what any of them returns."""
        if eqn.primitive.name in ("scan", "while"):
            wanted = [True] * len(wanted)  # a carry may be used by the next step
        made = [self.walk(jaxpr, given, wanted, around) for jaxpr, given in inner]
        together = zip(*made, strict=True)
        return [tuple(dict.fromkeys(v for values in each for v in values)) for each in together]

    def _loop(self, eqn: Any, inside: _Place) -> None:
        """Note a loop: of the members of a `repeat`, or over time."""
        if inside[0] is None or eqn.primitive.name != "scan":
            return
        call = self.calls[inside[0]]
        if not call.times and not call.steps:
            if call.layer.name == "repeat":
                call.times = eqn.params["length"]
            elif eqn.params["num_carry"] and call.layer.name in _RECURRENT:
                call.steps = eqn.params["length"]

    def _node(self, inside: _Place) -> tuple[Node, bool]:
        """The node that shows a call or its gradient, and whether its body is shown."""
        number, is_gradient = inside
        scope = self.top
        for n in self._chain(number):
            place = n, is_gradient and n == number
            is_open = n in self._open and not place[1]
            if place not in self.nodes:
                node = self.add("layer", self.calls[n].name, scope, self.calls[n])
                node.graph, node.is_gradient = Graph() if is_open else None, place[1]
                self.nodes[place] = node
            scope = self.nodes[place]
            if not is_open:
                return scope, False
        return scope, True

    # --- arrows

    def link(self, values: Sequence[Value], target: Node, text: str) -> None:
        """Arrows from what makes these values, through the ports of the bodies between."""
        for value in values:
            if value.maker.sort in ("key", "params", "state"):
                value = self._from_outside(value, target)
            if value is not None and value.maker is not target:
                self._arrow(value, target, text)

    def _from_outside(self, value: Value, target: Node) -> Value | None:
        """The weights of another layer, or noise, with a node; None for what the target owns."""
        scope = target.scope
        if target.sort != "op" or scope is None or value.maker.sort == "state":
            return None
        if value.maker.sort == "key":
            return self._noise.setdefault(scope, Value(self.add("op", "random", scope), ""))
        path = value.maker.label
        own = scope.call.path if scope.call else ""
        below = f"{own}/" if own else ""
        if not path.startswith(below) or "/" not in path[len(below) :]:
            return None
        if path not in self._weights:
            maker = self._owner(path, scope) or self.add("weights", path, scope)
            name = path.rpartition("/")[2]
            self._weights[path] = Value(maker, f"{name} {value.text}", weights=True)
        return self._weights[path]

    def _owner(self, path: str, scope: Node) -> Node | None:
        """The layer of this scope, already called, whose weights stand at a path."""
        assert scope.graph is not None
        for node in scope.graph.nodes:
            if node.call and not node.graph and path.startswith(f"{node.call.path}/"):
                return node
        return None

    def _arrow(self, value: Value, target: Node, text: str) -> None:
        ups, downs = value.maker.scopes(), target.scopes()
        common = sum(1 for a, b in zip(ups, downs, strict=False) if a is b)
        source, out = value.maker, False
        for scope in reversed(ups[common:]):
            assert scope.graph is not None
            port = scope.graph.outputs.setdefault(value, Node("port", "", scope))
            join(scope.graph, Edge(source, port, value, out, False, text))
            source, out = scope, True
        graph = ups[common - 1].graph
        for scope in downs[common:]:
            assert scope.graph is not None and graph is not None
            join(graph, Edge(source, scope, value, out, True, text))
            graph = scope.graph
            source, out = graph.inputs.setdefault(value, Node("port", "", scope)), False
        assert graph is not None
        join(graph, Edge(source, target, value, out, False, text))


_RECURRENT = ("rnn", "lstm", "gru", "simple_rnn", "lru", "rnn_from_layer")


def _inside_of(names: str, around: _Place) -> _Place:
    """Where an equation of these names stands; a gradient is that of the outermost call in it."""
    before, _, differentiated = names.partition("transpose(")
    if around[1]:
        return around
    if marks := _MARK.findall(differentiated):
        return int(marks[0]), True
    marks = _MARK.findall(before)
    return (int(marks[-1]) if marks else around[0]), False


def _needed(jaxpr: Any, wanted: Sequence[bool]) -> set[Any]:
    """The values on which what is wanted of a jaxpr depends."""
    results = [v for v, want in zip(jaxpr.outvars, wanted, strict=True) if want]
    needed = {v for v in results if not hasattr(v, "val")}
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed for v in eqn.outvars):
            needed.update(v for v in eqn.invars if not hasattr(v, "val"))
    return needed


def _jaxprs(eqn: Any) -> Iterator[Any]:
    for value in eqn.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each


def _marked(eqn: Any) -> bool:
    """Whether layers are called inside an equation."""
    inner = (each for jaxpr in _jaxprs(eqn) for each in jaxpr.eqns)
    return any(_MARK.search(str(e.source_info.name_stack)) or _marked(e) for e in inner)


def _inner(eqn: Any, used: list[tuple]) -> list[tuple[Any, list]]:
    """The jaxprs that an equation runs, with the sources of their arguments."""
    name, jaxprs = eqn.primitive.name, list(_jaxprs(eqn))
    if name == "while":
        test = eqn.params["cond_nconsts"]
        return [(eqn.params["body_jaxpr"].jaxpr, used[test:])]
    if name == "cond":
        return [(jaxpr, used[1:]) for jaxpr in jaxprs]
    return [(jaxpr, used) for jaxpr in jaxprs[:1] if len(jaxpr.invars) == len(used)]
