"""The graph of a network: what a picture of it shows, level by level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fnn.core.layer import Layer


@dataclass(eq=False)
class Call:
    """One call of a layer.

    - `parent`: the number of the call that it is part of; None for the network's own.
    - `times`: the number of members of a `repeat` or an `ensemble`; `steps`: of a loop over time.
    """

    number: int
    path: str
    layer: Layer
    parent: int | None
    times: int = 0
    steps: int = 0

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2] or self.layer.name


@dataclass(eq=False)
class Node:
    """What a picture shows: a layer, an operation between layers, an input, an output or a port.

    - `scope`: the layer in whose body it stands. `call`: of a layer.
    - `graph`: of a layer whose body is shown. `is_gradient`: whether it is the backward pass of the
      call, in a network that differentiates a part of itself.
    """

    sort: str
    label: str
    scope: Node | None = None
    call: Call | None = None
    graph: Graph | None = None
    is_gradient: bool = False

    def scopes(self) -> list[Node]:
        """The layers around it, the outermost first."""
        return [*self.scope.scopes(), self.scope] if self.scope else []


@dataclass(eq=False)
class Value:
    """An array, and the node that makes it; or weights, and the layer to which they belong."""

    maker: Node
    text: str
    weights: bool = False


class Edge(NamedTuple):
    """A value on its way from a node to a node of the same graph.

    - `out`, `into`: whether it leaves or enters a body by a port of its own.
    - `text`: the array as it is used, after changes of shape.
    """

    source: Node
    target: Node
    value: Value
    out: bool
    into: bool
    text: str


@dataclass(eq=False)
class Graph:
    """The body of a layer; `inputs` and `outputs` are its ports, by what passes through them."""

    nodes: list[Node] = field(default_factory=list)
    edges: dict[tuple, Edge] = field(default_factory=dict)
    inputs: dict[Value, Node] = field(default_factory=dict)
    outputs: dict[Value, Node] = field(default_factory=dict)


def join(graph: Graph, edge: Edge) -> None:
    """Add an edge, unless one just like it is there."""
    ports = edge.out and edge.value, edge.into and edge.value
    texts = edge.value.text, edge.text, edge.value.weights
    graph.edges.setdefault((edge.source, edge.target, *ports, *texts), edge)


def in_order(nodes: list[Node], before: Mapping[Node, list[Node]]) -> list[Node]:
    """The nodes, each after those that lead to it."""
    found: dict[Node, None] = {}
    begun: set[Node] = set()
    stack = list(reversed(nodes))
    while stack:
        node = stack[-1]
        missing = [n for n in before.get(node, ()) if n not in found and n not in begun]
        begun.add(node)
        if missing:
            stack += missing
        else:
            found.setdefault(stack.pop())
    return list(found)
