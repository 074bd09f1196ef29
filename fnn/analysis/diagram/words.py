"""What the nodes of a picture say, and how much room that takes."""

from __future__ import annotations

import math

import jax

from fnn.analysis.diagram.flow import Flow
from fnn.analysis.diagram.graph import Call, Node
from fnn.analysis.diagram.layout import Plan
from fnn.analysis.diagram.rows import Size
from fnn.analysis.figures import pyplot
from fnn.core.declarations import Param
from fnn.core.types import Tree

LARGE, SMALL = 9.0, 7.5  # of names, and of all else, in points
LINE = 9.8  # from one line to the next
LOOP = 16.0  # beside what runs in a loop
_WINDOW = ("depth", "height", "width")


class Words:
    """The lines of each node and its size."""

    def __init__(self, found: Flow):
        pyplot()  # whose absence is a clear error
        from matplotlib.font_manager import FontProperties
        from matplotlib.textpath import text_to_path

        self._to_path = text_to_path
        self._fonts = {
            (size, bold): FontProperties(size=size, weight="bold" if bold else "normal")
            for size in (LARGE, SMALL)
            for bold in (True, False)
        }
        self._found = found
        self._paths: set[str] = set()
        self._lines: dict[Node, list[str]] = {}

    def width(self, text: str, size: float = SMALL, bold: bool = False) -> float:
        font = self._fonts[size, bold]
        return self._to_path.get_text_width_height_descent(text, font, ismath=False)[0]

    def size(self, node: Node) -> Size:
        if node.sort == "op":
            return Size(max(self.width(node.label) + 10, 17.0), 17.0)
        if node.sort != "layer":
            return Size(self.width(node.label, LARGE) + 16, 18.0)
        return Size(max(self._widest(node), 50.0) + 16, 11.5 + LINE * len(self.lines(node)),
                    _loop(node))  # fmt: skip

    def frame(self, node: Node, body: Plan) -> tuple[Size, float, float]:
        """The size of a layer around its body, and where in it that stands: below its name."""
        title, high = self._widest(node) + 20, LINE * len(self.lines(node)) + 6
        ports = [x for (_, out), x in body.ports.items() if not out]
        left = max(10.0, title - min(ports, default=title))
        right = max(10.0, title - left - body.width)
        return Size(left + body.width + right, high + body.height, _loop(node)), left, high

    def lines(self, node: Node) -> list[str]:
        """The name of a layer, its kind and the number of its params; the label of another node."""
        if node.call is None:
            return [node.label]
        if node not in self._lines:
            said = [node.call.name, "gradient"] if node.is_gradient else self._describe(node.call)
            self._lines[node] = said
        return self._lines[node]

    def _widest(self, node: Node) -> float:
        name, *rest = self.lines(node)
        return max(self.width(name, LARGE, True), *map(self.width, rest), 0.0)

    def _describe(self, call: Call) -> list[str]:
        kind = call.layer.name.strip("<>_") or "layer"
        params = [p for p in jax.tree.leaves(_below(self._found.params, call.path))]
        about = [] if call.name.rstrip("0123456789").rstrip("_") == kind else [kind]
        if call.times:
            about = [f"{kind} × {call.times}"]
        elif not call.layer.children:
            about += _window(params)
        if call.steps:
            about.append(f"{call.steps} steps")
        is_again = call.path in self._paths
        self._paths.add(call.path)
        n = sum(math.prod(p.stack + p.shape) for p in params) // self._members(call)
        count = f"{'the same ' if is_again else ''}{n:,} param{'s' if n != 1 else ''}"
        return [call.name, *filter(None, [" · ".join(about)]), *([count] if n else [])]

    def _members(self, call: Call) -> int:
        """How many members there are of the layers around a call, one of which it belongs to."""
        n = 1
        while call.parent is not None:
            call = self._found.calls[call.parent]
            n *= max(call.times, 1)
        return n


def _loop(node: Node) -> float:
    return LOOP if node.call and node.call.steps and not node.is_gradient else 0.0


def _window(params: list[Param]) -> list[str]:
    """The size of the window of a convolution."""
    for param in params:
        axes = dict(zip(param.axes or (), param.shape, strict=True)) if param.axes else {}
        if sizes := [str(axes[axis]) for axis in _WINDOW if axis in axes]:
            return [" × ".join(sizes)]
    return []


def _below(params: Tree, path: str) -> Tree:
    for name in filter(None, path.split("/")):
        params = params.get(name, {}) if isinstance(params, dict) else {}
    return params
