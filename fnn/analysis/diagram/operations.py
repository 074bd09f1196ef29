"""What the operations between layers are called in a picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from fnn.analysis.diagram.graph import Graph, Node, in_order, join

# These only move, copy or select values.
_MOVES = frozenset(
    "broadcast_in_dim convert_element_type copy copy_p device_put expand_dims name "
    "optimization_barrier pad pvary reduce_precision reshape rev sharding_constraint slice split "
    "squeeze stop_gradient transpose".split()
)
_INDEXED = frozenset("dynamic_slice gather".split())  # by numbers that are no data
_MINUS = "\N{MINUS SIGN}"
_SYMBOLS = {
    "add": "+", "add_any": "+", "sub": _MINUS, "neg": _MINUS, "mul": "×", "div": "÷",
    "concatenate": "concat", "dot_general": "matmul", "conv_general_dilated": "conv",
    "logistic": "sigmoid", "select_n": "where", "reduce_sum": "sum", "reduce_max": "max",
    "reduce_min": "min", "reduce_and": "all", "reduce_or": "any", "integer_pow": "power",
    "pow": "power", "dynamic_slice": "index", "gather": "index",
}  # fmt: skip
_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
_UNNAMED = ("f", "fn", "fun", "lambda", "wrapped")


def label_of(eqn: Any) -> str | None:
    """The name of an operation; None for a call of a function that has none of its own.

    >>> import jax
    >>> jaxpr = jax.make_jaxpr(lambda x: jax.nn.silu(2 * x + x))(1.0)
    >>> [label_of(eqn) for eqn in jaxpr.eqns]
    ['× 2', '+', 'silu']
    """
    name = eqn.primitive.name
    if name in _CALLS:
        if all(moves_alone(inner, None) for inner in _body(eqn)):
            return None
        given = str(eqn.params.get("name") or "").strip("_")
        return (
            given if given.isidentifier() and given not in ("f", "fn", "fun", "wrapped") else None
        )
    if any(hasattr(value, "eqns") or hasattr(value, "jaxpr") for value in eqn.params.values()):
        return None
    symbol = _SYMBOLS.get(name, name)
    if name == "integer_pow":
        return f"power {eqn.params['y']}"
    numbers = [v.val for v in eqn.invars if hasattr(v, "val") and np.shape(v.val) == ()]
    if name in ("add", "sub", "mul", "div", "pow", "max", "min") and len(numbers) == 1:
        return f"{symbol} {numbers[0]:.3g}"
    return symbol


def moves_alone(eqn: Any, used: list[tuple] | None) -> bool:
    """Whether an operation only moves values: nothing that a picture shows.

    - `used`: the sources of each operand; None if they are not known.
    """
    name = eqn.primitive.name
    if name == "max" and any(hasattr(v, "val") and np.all(v.val == -np.inf) for v in eqn.invars):
        return True
    if name in _INDEXED:
        return used is None or not any(used[1:])
    if name in _CALLS:
        return all(moves_alone(inner, None) for inner in _body(eqn))
    return name in _MOVES


def _body(eqn: Any) -> list[Any]:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return getattr(inner, "jaxpr", inner).eqns


# --- many operations between the same layers as one

_FUNCTIONS = {
    ("max", "−", "exp", "sum", "÷"): "softmax",
    ("power 3", "× 0.0447", "+", "× 0.798", "tanh", "+ 1", "× 0.5", "×"): "gelu",
}
_MOST = 3  # operations that are shown one by one


def merged(graph: Graph) -> None:
    """Make one node of many operations that stand between the same layers.

    Those that depend on the same layers, and on which the same layers depend: no path leads from
    one of them through anything else to another, so no circle can arise. What leads nowhere, such
    as the test of a `cond`, is left out.
    """
    _prune(graph)
    above, below = _reach(graph, forward=False), _reach(graph, forward=True)
    groups: dict[tuple, list[Node]] = {}
    for node in graph.nodes:
        if node.sort == "op" and node.label != "random":
            groups.setdefault((above[node], below[node]), []).append(node)
    into: dict[Node, Node] = {}
    for group in groups.values():
        for part in _connected(group, graph):
            if len(part) > _MOST:
                one = Node("op", _together([node.label for node in part]), part[0].scope)
                graph.nodes[graph.nodes.index(part[0])] = one
                into.update(dict.fromkeys(part, one))
    graph.nodes[:] = [node for node in graph.nodes if node not in into]
    edges, graph.edges = list(graph.edges.values()), {}
    for edge in edges:
        source, target = into.get(edge.source, edge.source), into.get(edge.target, edge.target)
        if source is not target:
            join(graph, edge._replace(source=source, target=target))


def _prune(graph: Graph) -> None:
    """Leave out operations that lead nowhere."""
    while True:
        useful = {edge.source for edge in graph.edges.values()}
        ends = [n for n in graph.nodes if n.sort == "op" and n not in useful]
        if not ends:
            return
        graph.nodes[:] = [node for node in graph.nodes if node not in ends]
        graph.edges = {k: edge for k, edge in graph.edges.items() if edge.target not in ends}


def _together(labels: list[str]) -> str:
    for parts, name in _FUNCTIONS.items():
        for i in range(len(labels) - len(parts) + 1):
            if tuple(labels[i : i + len(parts)]) == parts:
                labels[i : i + len(parts)] = [name]
    names = list(dict.fromkeys(labels))
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _reach(graph: Graph, forward: bool) -> dict[Node, frozenset[Node]]:
    """The nodes, operations aside, that lead to each node, or to which each leads."""
    near: dict[Node, list[Node]] = {}
    for edge in graph.edges.values():
        a, b = (edge.source, edge.target) if forward else (edge.target, edge.source)
        near.setdefault(a, []).append(b)
    found: dict[Node, frozenset[Node]] = {}
    for node in in_order(graph.nodes, near):
        others = [n for n in near.get(node, []) if n in found]
        own = {n for n in others if n.sort != "op" or n.label == "random"}
        found[node] = frozenset(own).union(*(found[n] for n in others))
    return found


def _connected(group: list[Node], graph: Graph) -> list[list[Node]]:
    """The parts of a group that are linked with one another."""
    part = {node: i for i, node in enumerate(group)}
    for edge in graph.edges.values():
        a, b = part.get(edge.source), part.get(edge.target)
        if a is not None and b is not None and a != b:
            part = {node: a if i == b else i for node, i in part.items()}
    return [[n for n in group if part[n] == i] for i in dict.fromkeys(part.values())]
