"""A network as a picture of boxes and arrows."""

from __future__ import annotations

from typing import Any

from fnn.analysis.diagram.flow import flow
from fnn.analysis.diagram.graph import Graph, Node, Value, join
from fnn.analysis.diagram.layout import Style, plan
from fnn.analysis.diagram.operations import merged
from fnn.analysis.diagram.pen import draw
from fnn.analysis.diagram.words import Words
from fnn.core import checks, errors
from fnn.core.layer import Layer, as_layer


@errors.named
def network(
    net: Layer, *xs: Any, depth: int = 1, path: str = "", train: bool = False, **inputs: Any
) -> Any:
    """A network as boxes and arrows: its layers, and the values that pass between them.

    - `xs`: inputs as for `net.init`: arrays, ShapeDtypeStructs or shapes, by position or by name.
      Nothing is computed.
    - `depth`: how many levels of layers are shown; a layer above that has its body drawn in it.
    - `path`: of the layer to draw, such as "blocks/attention"; "" is the whole network.
    - `train`: whether to draw what training mode computes.

    What flows where is found by tracing. An arrow is a value, and its label the shape and dtype
    with which it is made, and again where it is used in another shape. A box is a layer: its name,
    its kind where the name does not say it, the window of a convolution, and its number of params,
    of one member inside a `repeat`. A round node is an operation between layers; those that only
    move values are left out, and more than three between the same layers are one node. A dashed
    arrow carries weights that another layer owns, and "the same" params are those of an earlier
    call. "× 12" is a `repeat` or an `ensemble`, an arrow from a box to itself a loop over time. Of
    a `cond` all branches are drawn, of a loop in a body one round; what no output depends on is
    left out. A chain too long for a page goes on in a further column.

    Save it by `figure.savefig("network.svg")`, or as PNG. Raises OptionError for an unknown path.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> import fnn, jax
    >>> net = fnn.serial(fnn.dense(8), jax.nn.relu, fnn.dense(3))
    >>> figure = network(net, (2, 4))
    >>> [text.get_text() for text in figure.axes[0].texts if "dense" in text.get_text()]
    ['dense1', 'dense2']
    """
    net, depth = as_layer(net), checks.count("depth", depth)
    found = flow(net, xs, inputs, depth, path, train)
    graph = _alone(found.shown) if path else found.shown.graph
    assert graph is not None
    _merge(graph)
    words = Words(found)
    whole = plan(graph, Style(words.size, words.frame, words.width))
    return draw(whole, words)


def _merge(graph: Graph) -> None:
    merged(graph)
    for node in graph.nodes:
        if node.graph:
            _merge(node.graph)


def _alone(node: Node) -> Graph:
    """A layer with its own inputs and outputs."""
    graph, ends = Graph([node]), dict[tuple[Value, bool], Node]()
    assert node.scope is not None and node.scope.graph is not None
    for edge in node.scope.graph.edges.values():
        if edge.target is node and not edge.value.weights:
            end = ends.setdefault((edge.value, False), Node("input", edge.source.label or "x"))
            join(graph, edge._replace(source=end, out=False))
        elif edge.source is node and not edge.value.weights:
            end = ends.setdefault((edge.value, True), Node("output", "y"))
            join(graph, edge._replace(target=end, into=False))
    graph.nodes += ends.values()
    return graph
