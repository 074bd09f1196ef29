"""Where the nodes and arrows of a picture stand.

Between two rows of nodes lie a band for labels of what leaves, one for the curves and one for
labels of what enters, so nothing overlaps. Lengths are points; y grows downward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fnn.analysis.diagram.graph import Edge, Graph, Node
from fnn.analysis.diagram.rows import LANE, Cell, Link, Rows, Size

LABEL = 11.0  # the height of a label
STEM = 8.0  # how far an arrow is straight before its head
TALLEST = 1100.0  # before a chain goes on in a column of its own
GUTTER, TURN = 30.0, 24.0  # between columns, and above and below them


class Label(NamedTuple):
    x: float
    y: float
    text: str


@dataclass
class Path:
    """An arrow through points: straight lines where x stays, else curves.

    - `corners`: straight lines alone, around a column.
    """

    points: list[tuple[float, float]]
    edge: Edge
    corners: bool = False


@dataclass
class Plan:
    """A graph laid out.

    - `boxes`: left, top, width and height of each node. `inner`: where its body begins, and the
      plan of that.
    - `ports`: the x of each port, by (value, whether it leaves).
    """

    width: float = 0.0
    height: float = 0.0
    boxes: dict[Node, tuple[float, float, float, float]] = field(default_factory=dict)
    inner: dict[Node, tuple[float, float, Plan]] = field(default_factory=dict)
    paths: list[Path] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    ports: dict[tuple[Any, bool], float] = field(default_factory=dict)


class Style(NamedTuple):
    """What text and boxes measure.

    - `size`: of a node without a body. `frame`: of one around the plan of its body, and where in it
      that stands. `width_of`: of a label.
    """

    size: Callable[[Node], Size]
    frame: Callable[[Node, Plan], tuple[Size, float, float]]
    width_of: Callable[[str], float]


def plan(graph: Graph, style: Style) -> Plan:
    """Lay out a graph and the bodies in it."""
    cells: dict[Node, Cell] = {}
    inside: dict[Node, tuple[float, float, Plan]] = {}
    for node in graph.nodes:
        if node.graph is None:
            cells[node] = Cell(node, style.size(node))
            continue
        body = plan(node.graph, style)
        size, x, y = style.frame(node, body)
        cells[node] = Cell(node, size)
        cells[node].ports = {key: x + at - size.width / 2 for key, at in body.ports.items()}
        inside[node] = x, y, body
    for port in (*graph.inputs.values(), *graph.outputs.values()):
        cells[port] = Cell(port, Size(2 * LANE, 0.0))
    return _Columns(Rows(graph, cells, style.width_of), inside).plan() if cells else Plan()


class _Columns:
    """Rows one above the other, in as many columns as keep a long chain legible."""

    def __init__(self, rows: Rows, inside: dict[Node, tuple[float, float, Plan]]):
        self.all, self.rows, self.links, self.inside = rows, rows.rows, rows.links, inside
        self.tops: list[float] = []
        self.bottoms: list[float] = []
        y = 0.0
        for row, links in zip(self.rows, self.links, strict=True):
            self.tops.append(y)
            self.bottoms.append(y := y + max(cell.size.height for cell in row))
            wide = max((abs(rows.out_of(k) - rows.into(k)) for k in links), default=0.0)
            curves = min(max(8.0, 0.1 * wide), 28.0)
            y += LABEL * (_leaving(links) + _entering(links)) + curves + STEM
        self.starts = self._starts()
        self.spans = self._spans(self.starts)
        self.turns = TURN if len(self.spans) > 1 else 0.0
        self.shift: list[tuple[float, float]] = []  # of each row
        x = 0.0
        for span in self.spans:
            low, high = self._sides(span)
            self.shift += [(x - low, self.turns - self.tops[span[0]])] * (span[1] - span[0])
            x += high - low + GUTTER
        ends = [self.bottoms[b - 1] + self.shift[b - 1][1] for _, b in self.spans]
        self.found = Plan(x - GUTTER, max(ends) + self.turns)

    def _spans(self, starts: list[int]) -> list[tuple[int, int]]:
        return list(zip(starts, [*starts[1:], len(self.tops)], strict=True))

    def _sides(self, span: tuple[int, int]) -> tuple[float, float]:
        cells = [cell for row in self.rows[slice(*span)] for cell in row]
        return min(c.x - c.left for c in cells), max(c.x + c.right for c in cells)

    def _size(self, starts: list[int]) -> tuple[float, float]:
        sides = [high - low for low, high in map(self._sides, self._spans(starts))]
        heights = [self.bottoms[b - 1] - self.tops[a] for a, b in self._spans(starts)]
        return sum(sides) + GUTTER * (len(sides) - 1), max(heights)

    def _starts(self) -> list[int]:
        """The first rows of the columns: as few as are not too tall, if more columns help."""
        alone = [len(row) == 1 for row in self.rows]
        cuts = [i for i in range(2, len(alone)) if alone[i - 1] and alone[i]]
        starts, whole = [0], self.bottoms[-1]
        for n in range(2, len(cuts) + 2):
            width, height = self._size(starts)
            if height <= max(TALLEST, width):
                break
            goals = [whole * k / n for k in range(1, n)]
            near = [min(cuts, key=lambda c, goal=goal: abs(self.tops[c] - goal)) for goal in goals]
            more = [0, *sorted(set(near))]
            starts = more if self._size(more)[1] < height * (n - 0.6) / n else starts
        return starts

    def plan(self) -> Plan:
        for i, row in enumerate(self.rows):
            for cell in row:
                if cell.node:
                    self._node(i, cell)
        for i, links in enumerate(self.links):
            for cell in {link.source: None for link in links if link.source.label}:
                self._label(i, cell)
            for link in links:
                if link.last:
                    self._arrow(i, link)
        return self.found

    def _at(self, i: int, cell: Cell) -> tuple[float, float]:
        """The middle of a cell of row i."""
        dx, dy = self.shift[i]
        y = (self.tops[i] + self.bottoms[i]) / 2 + dy
        if cell.node in self.all.graph.inputs.values():
            y = 0.0
        elif cell.node in self.all.graph.outputs.values():
            y = self.found.height
        return cell.x + dx, y

    def _node(self, i: int, cell: Cell) -> None:
        assert cell.node is not None
        x, y = self._at(i, cell)
        graph = self.all.graph
        for out, ports in ((False, graph.inputs), (True, graph.outputs)):
            self.found.ports |= {(v, out): x for v, port in ports.items() if port is cell.node}
        if cell.node.sort != "port":
            left, top = x - cell.size.width / 2, y - cell.size.height / 2
            self.found.boxes[cell.node] = left, top, cell.size.width, cell.size.height
            if cell.node in self.inside:
                x, y, body = self.inside[cell.node]
                self.found.inner[cell.node] = left + x, top + y, body

    def _label(self, i: int, cell: Cell) -> None:
        x, y = self._at(i, cell)
        down = cell.size.height / 2 + 7 if cell.node else 0.0
        self.found.labels.append(Label(x + 5, y + down, cell.label))

    def _arrow(self, i: int, link: Link) -> None:
        """The arrow that ends with a link from row i, with its lanes in the rows before."""
        pieces = [link]
        while pieces[0].source.node is None:
            i -= 1
            lane = pieces[0].source
            pieces.insert(0, next(k for k in self.links[i] if k.target is lane))
        points, corners = [], False
        for n, piece in enumerate(pieces):
            points += self._piece(i + n, piece)
            corners |= i + n + 1 in self.starts
        same = [p for p, q in zip(points, points[1:], strict=False) if p != q]
        self.found.paths.append(Path([*same, points[-1]], link.edge, corners))
        if link.target.entering:
            x, top = points[-1][0], self.tops[i + len(pieces)] + self.shift[i + len(pieces)][1]
            self.found.labels.append(Label(x + 5, top - STEM - 4, link.target.entering))

    def _piece(self, i: int, link: Link) -> list[tuple[float, float]]:
        a, b = link.source, link.target
        (ax, ay), (bx, by) = self._at(i, a), self._at(i + 1, b)
        x1, x2 = self.all.out_of(link) - a.x + ax, self.all.into(link) - b.x + bx
        below, above = self.bottoms[i] + self.shift[i][1], self.tops[i + 1] + self.shift[i + 1][1]
        start = below + LABEL * _leaving(self.links[i])
        end = above - LABEL * _entering(self.links[i]) - STEM
        first = [(x1, ay + a.size.height / 2)]
        if link.edge.value.weights and a.node:  # which leave at the side
            first = [(ax + a.size.width / 2, ay), (x1 - 0.01, ay), (x1, ay)]
        last = [(x2, by - _half(b, x2 - bx))]
        if abs(x2 - bx) > b.size.width / 2:  # which enters at the side
            last = [(x2, by), (bx + math.copysign(b.size.width / 2, x2 - bx), by)]
        if i + 1 in self.starts:
            side = self.shift[i + 1][0] + self._sides(self._span(i + 1))[0] - GUTTER / 2
            low, high = start + 6, above - TURN + 4
            return [*first, (x1, low), (side, low), (side, high), (x2, high), *last]
        return [*first, (x1, start), (x2, end), *last]

    def _span(self, row: int) -> tuple[int, int]:
        return next(span for span in self.spans if span[0] <= row < span[1])


def _leaving(links: list[Link]) -> bool:
    return any(link.source.label for link in links if link.source.node)


def _entering(links: list[Link]) -> bool:
    return any(link.target.entering for link in links if link.last)


def _half(cell: Cell, x: float) -> float:
    """How far above its middle a cell begins at x; the ends of an operation are round."""
    half = cell.size.height / 2
    if cell.node and cell.node.sort != "layer":
        beyond = abs(x) - max(cell.size.width / 2 - half, 0.0)
        return max(half**2 - max(beyond, 0.0) ** 2, 0.0) ** 0.5
    return half
