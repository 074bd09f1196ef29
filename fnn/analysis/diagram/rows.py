"""Rows of nodes, with lanes for the values that pass them, so that arrows cross no box.

The method is that of Sugiyama, Tagawa and Toda (1981): each node gets the row after its last
predecessor, a value that passes rows gets a lane of its own in each, rows are ordered so that few
arrows cross, and then each node moves towards the middle of its neighbours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fnn.analysis.diagram.graph import Edge, Graph, Node, in_order

GAP = 18.0  # between the nodes of a row
LANE = 5.0  # half the width of a lane
ENTRY = 7.0  # between arrows that enter side by side
SIDE = 9.0  # from the side of an operation to an arrow that enters there


class Size(NamedTuple):
    """Of a node as drawn: width, height, and what stands to its right, such as a loop."""

    width: float
    height: float
    right: float = 0.0


@dataclass(eq=False)
class Cell:
    """A node in its row, or a lane (no node); x is its middle.

    - `left`, `right`: how much room it takes. `label`: of what leaves it, `entering`: of what
      enters it in another shape than it left.
    - `ports`: the offset of the ports of a body, by (value, whether it leaves).
    """

    node: Node | None
    size: Size
    ports: dict[tuple[Any, bool], float] = field(default_factory=dict)
    left: float = 0.0
    right: float = 0.0
    x: float = 0.0
    label: str = ""
    entering: str = ""
    above: list[Cell] = field(default_factory=list)
    below: list[Cell] = field(default_factory=list)
    length: int = 0  # how many rows the value of a lane passes


class Link(NamedTuple):
    """A piece of arrows, from a row to the next; `last`: of the arrow `edge`."""

    source: Cell
    target: Cell
    edge: Edge
    last: bool


class Rows:
    """The rows of a graph, the links from each row to the next, and each cell's x."""

    def __init__(self, graph: Graph, cells: dict[Node, Cell], width_of: Callable[[str], float]):
        self.graph, self.cells, self.width_of = graph, cells, width_of
        self.edges = list(graph.edges.values())
        self.rank = _ranks(graph, list(cells), self.edges)
        self.rows: list[list[Cell]] = [[] for _ in range(1 + max(self.rank.values()))]
        for node, cell in cells.items():
            self.rows[self.rank[node]].append(cell)
        self.links: list[list[Link]] = [[] for _ in self.rows]
        self.chains: list[list[Cell]] = []  # the lanes of each value
        self._lanes()
        self._order()
        self._sides()
        self._widen()
        self._labels()
        self._place()
        self._straighten()
        left = min(c.x - c.left for row in self.rows for c in row)
        for cell in (c for row in self.rows for c in row):
            cell.x -= left

    def out_of(self, link: Link) -> float:
        """The x at which an arrow leaves its cell."""
        cell = link.source
        if link.edge.value.weights and cell.node:
            return cell.x + cell.right - LANE
        if cell.node and link.edge.out:
            return cell.x + cell.ports[link.edge.value, True]
        return cell.x

    def into(self, link: Link) -> float:
        """The x at which an arrow enters its cell: what comes straight from above in the middle."""
        cell = link.target
        if cell.node is None or not link.last:
            return cell.x
        if link.edge.into:
            return cell.x + cell.ports[link.edge.value, False]
        sources, middle = self._entries(cell)
        place, most = sources.index(link.source) - middle, self._most(sources, middle)
        if cell.node.sort == "op" and len(sources) < 4 and middle % 1 == 0 and abs(place) == 1:
            return cell.x + place * (cell.size.width / 2 + SIDE)
        step = min(18.0, max(ENTRY, (cell.size.width / 2 - 5) / most)) if most else 0.0
        return cell.x + place * step

    def _entries(self, cell: Cell) -> tuple[list[Cell], float]:
        """What leads to a cell from the row before, in order, and which of these comes straight."""
        assert cell.node is not None
        row = self.rows[self.rank[cell.node] - 1]
        sources = sorted(dict.fromkeys(cell.above), key=row.index)
        straight = [i for i, source in enumerate(sources) if source.node]
        return sources, straight[0] if len(straight) == 1 else (len(sources) - 1) / 2

    def _most(self, sources: list[Cell], middle: float) -> float:
        """How many places an entry is from the middle, at most."""
        return max(middle, len(sources) - 1 - middle)

    def _widen(self) -> None:
        """Make room for all that enters a cell."""
        for cell in self.cells.values():
            if len(cell.above) > 3 and not cell.ports:
                width = 2 * ENTRY * self._most(*self._entries(cell)) + 14
                cell.size = cell.size._replace(width=max(cell.size.width, width))

    # --- lanes

    def _lanes(self) -> None:
        """Every value that passes rows gets one lane, from which its arrows branch off."""
        by_outlet: dict[tuple, list[Edge]] = defaultdict(list)
        for edge in self.edges:
            apart = edge.out or edge.value.weights
            by_outlet[edge.source, edge.value if apart else None].append(edge)
        for edges in by_outlet.values():
            first, lane = self.rank[edges[0].source], self.cells[edges[0].source]
            farthest, chain = max(self.rank[edge.target] for edge in edges), []
            for row in range(first, farthest):
                for edge in edges:
                    if self.rank[edge.target] == row + 1:
                        self._tie(row, Link(lane, self.cells[edge.target], edge, True))
                if row + 1 < farthest:
                    new = Cell(None, Size(2 * LANE, 0.0), length=farthest - first)
                    self.rows[row + 1].append(new)
                    kept = next(edge for edge in edges if self.rank[edge.target] > row + 1)
                    self._tie(row, Link(lane, new, kept, False))
                    chain.append(lane := new)
            self.chains += [chain] if chain else []

    def _tie(self, row: int, link: Link) -> None:
        self.links[row].append(link)
        link.source.below.append(link.target)
        link.target.above.append(link.source)

    # --- the order of each row

    def _order(self) -> None:
        """Order each row by the middle of its neighbours, down and up."""
        for sweep in range(8):
            down = sweep % 2 == 0
            for n in range(len(self.rows)) if down else reversed(range(len(self.rows))):
                row, near_rows = self.rows[n], self.rows[max(n - 1, 0) : n + 2]
                spot = {c: (i + 0.5) / len(r) for r in near_rows for i, c in enumerate(r)}

                def middle(cell: Cell, spot=spot, down=down) -> tuple[float, int]:
                    near = (cell.above or cell.below) if down else (cell.below or cell.above)
                    spots = [spot[c] for c in near]
                    return round(float(np.mean(spots or [spot[cell]])), 6), cell.length

                row.sort(key=middle)

    def _sides(self) -> None:
        """Move the lanes of each value to the side on which the fewest arrows cross them."""
        at = {cell: i for i, row in enumerate(self.rows) for cell in row}
        for chain in sorted(self.chains, key=len, reverse=True) * 2:
            places = range(at[chain[0]], at[chain[-1]] + 1)
            kept = [self.rows[i] for i in places]
            found = []
            for side in (None, 1, -1):
                moved = [_moved(row, cell, side) for row, cell in zip(kept, chain, strict=True)]
                self.rows[places.start : places.stop] = moved
                found.append((self._crossings(chain, places), moved))
            best = min(crossings for crossings, _ in found)
            moved = next(moved for crossings, moved in found if crossings == best)
            self.rows[places.start : places.stop] = moved

    def _crossings(self, chain: list[Cell], places: range) -> int:
        """How many arrows cross those from and to the lanes of a chain."""
        total, own = 0, set(chain)
        for i in range(places.start - 1, places.stop):
            above = {cell: j for j, cell in enumerate(self.rows[i])}
            below = {cell: j for j, cell in enumerate(self.rows[i + 1])}
            ends = [(above[k.source], below[k.target]) for k in self.links[i]]
            mine = [j for j, k in enumerate(self.links[i]) if {k.source, k.target} & own]
            total += sum((ends[j][0] - a) * (ends[j][1] - b) < 0 for j in mine for a, b in ends)
        return total

    # --- coordinates

    def _labels(self) -> None:
        """The labels of what leaves cells and of what enters them, and the room that they take."""
        for link in (k for row in self.links for k in row):
            if link.edge.value.weights and link.source.node and not link.target.node:
                link.target.label = link.edge.value.text
        for edge in self.edges:
            text, known = edge.value.text, self.cells[edge.source].label.split("; ")
            by_lane = edge.value.weights and self.rank[edge.target] > self.rank[edge.source] + 1
            if (
                text
                and text not in known
                and not (by_lane or edge.out or edge.source.sort == "port")
            ):
                known.append(text if len(known) < 3 else "…")
                self.cells[edge.source].label = "; ".join(dict.fromkeys(filter(None, known)))
        several = {node for node, cell in self.cells.items() if "; " in cell.label}
        for node, cell in self.cells.items():
            entering = [e for e in self.edges if e.target is node and not e.value.weights]
            if node.sort in ("layer", "output") and not node.graph and len(entering) == 1:
                (edge,) = entering
                changed = edge.text != edge.value.text or edge.source in several
                cell.entering = edge.text if changed else ""
        for node in several:
            if all(self.cells[e.target].entering for e in self.edges if e.source is node):
                self.cells[node].label = ""
        for cell in (c for row in self.rows for c in row):
            text = max(map(self.width_of, filter(None, (cell.label, cell.entering))), default=0.0)
            cell.left = cell.size.width / 2
            cell.right = max(cell.left + cell.size.right, text + 8 if text else 0.0)
        for cell in {k.source for r in self.links for k in r if k.edge.value.weights}:
            cell.right += 3 * LANE if cell.node else 0.0

    def _place(self) -> None:
        """Move each cell towards its neighbours, as near as its row allows."""
        for row in self.rows:
            x = 0.0
            for cell in row:
                cell.x = x + cell.left
                x = cell.x + cell.right + GAP
        for sweep in range(24):
            down = sweep % 2 == 0
            for i in range(len(self.rows)) if down else reversed(range(len(self.rows))):
                self._towards(i, down)

    def _towards(self, i: int, down: bool) -> None:
        moves: dict[Cell, list[tuple[float, bool]]] = defaultdict(list)
        for link in self.links[i - 1] if down and i else [] if down else self.links[i]:
            move = self.out_of(link) - self.into(link)
            near, far = (link.target, link.source) if down else (link.source, link.target)
            moves[near].append((move if down else -move, far.node is not None))
        goals, weights = {}, {}
        for cell in self.rows[i]:
            straight = [move for move, real in moves[cell] if real and cell.node]
            used = straight or [move for move, _ in moves[cell]]
            goals[cell] = cell.x + float(np.mean(used or [0.0]))
            weights[cell] = (1.0 if cell.node else 1e-3) * (1.0 if used else 1e-2)
        self._settle(self.rows[i], goals, weights)

    def _settle(self, row: list[Cell], goals: dict, weights: dict) -> None:
        """Give a row the x's nearest to the goals that keep its cells apart."""
        apart = [0.0]
        for a, b in zip(row, row[1:], strict=False):
            gap = GAP if a.node and b.node else GAP / 2
            apart.append(apart[-1] + a.right + b.left + gap)
        low = [goals[cell] - shift for cell, shift in zip(row, apart, strict=True)]
        found = _rising(low, [weights[cell] for cell in row])
        for cell, z, shift in zip(row, found, apart, strict=True):
            cell.x = z + shift

    def _straighten(self) -> None:
        """Make the lanes of each value straight where there is room, outside of the boxes."""
        for _ in range(6):
            goals = {cell: cell.x for row in self.rows for cell in row}
            row_of = {cell: row for row in self.rows for cell in row}
            for chain in self.chains:
                right = 0
                for cell in chain:
                    nodes = [c.x for c in row_of[cell] if c.node]
                    right += sum(1 if x < cell.x else -1 for x in nodes)
                side = (max if right >= 0 else min)(cell.x for cell in chain)
                goals.update(dict.fromkeys(chain, side))
            for row in self.rows:
                weights = {cell: 1.0 if cell.node else 1e-3 for cell in row}
                self._settle(row, goals, weights)


def _moved(row: list[Cell], lane: Cell, side: int | None) -> list[Cell]:
    """A row with a lane moved to one of its ends."""
    rest = [cell for cell in row if cell is not lane]
    return row if side is None else [*rest, lane] if side == 1 else [lane, *rest]


def _ranks(graph: Graph, nodes: list[Node], edges: list[Edge]) -> dict[Node, int]:
    """The row of each node: after all that leads to it; what has no input, just before its use."""
    after, before = defaultdict(list), defaultdict(list)
    for edge in edges:
        after[edge.source].append(edge.target)
        before[edge.target].append(edge.source)
    rank: dict[Node, int] = {}
    for node in in_order(nodes, before):
        rank[node] = 1 + max((rank[n] for n in before[node] if n in rank), default=-1)
    first = set(graph.inputs.values()) | {n for n in nodes if n.sort == "input"}
    for node in nodes if first else ():
        if node not in first and not before[node]:
            rank[node] = max(rank[node], min((rank[n] for n in after[node]), default=1) - 1)
    last = max(rank.values())
    ports = set(graph.outputs.values())
    for node in nodes:
        if node in ports or node.sort == "output" and not after[node]:
            rank[node] = last
    return rank


def _rising(goals: list[float], weights: list[float]) -> list[float]:
    """The rising sequence nearest to the goals, by weighted squares (pooling of neighbours).

    >>> _rising([1.0, 3.0, 2.0], [1.0, 1.0, 3.0])
    [1.0, 2.25, 2.25]
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, count
    for goal, weight in zip(goals, weights, strict=True):
        blocks.append((goal, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (b, v, m), (a, u, n) = blocks.pop(), blocks.pop()
            blocks.append(((a * u + b * v) / (u + v), u + v, m + n))
    return [mean for mean, _, count in blocks for _ in range(count)]
