"""A laid-out picture drawn by matplotlib, one unit a point."""

from __future__ import annotations

from typing import Any

from fnn.analysis.diagram.graph import Call, Node
from fnn.analysis.diagram.layout import Path, Plan
from fnn.analysis.diagram.words import LARGE, LINE, LOOP, SMALL, Words
from fnn.analysis.figures import pyplot

_MARGIN = 12.0
_INK, _SOFT, _LINE = "#1a1a1a", "#4a4a4a", "#7d8590"
_HEAD = "-|>,head_length=4,head_width=2"

# By words in the kind of a layer: pale, so that dark text is legible on them, in grey as well.
_COLOURS = (
    ("#f9d9a8", ("conv", "lru")),
    ("#c5dcf5", ("dense", "bilinear")),
    ("#e3e3e3", ("norm",)),
    ("#d9c8ee", ("attention", "transformer")),
    ("#f5c3bd", ("lstm", "gru", "rnn", "cell")),
    ("#c3e6c8", ("embedding", "parameter", "sinusoidal", "positional", "alibi", "bias")),
    ("#f4efbd", ("pool", "flatten", "reshape", "upsample", "shuffle")),
    ("#fafafa", ("dropout", "drop_path", "noise")),
)
_FUNCTION, _COMPOSED = "#eef7f5", "#ffffff"
_BODIES = ("#f7f8fa", "#ffffff")  # of one level, and of the next


def draw(whole: Plan, words: Words) -> Any:
    """A figure of its own size, in which text has the size that was planned for it."""
    w, h = whole.width + 2 * _MARGIN, whole.height + 2 * _MARGIN
    figure = pyplot().figure(figsize=(w / 72, h / 72), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, w), ylim=(h, 0))
    axes.axis("off")
    _Pen(axes, words).draw(whole, _MARGIN, _MARGIN, 1)
    return figure


class _Pen:
    def __init__(self, axes: Any, words: Words):
        from matplotlib import patches
        from matplotlib.path import Path as Curve

        self.axes, self.words, self.patches, self.curve = axes, words, patches, Curve

    def draw(self, part: Plan, x: float, y: float, level: int) -> None:
        """A plan with its corner at (x, y); bodies are drawn over what is around them."""
        for node, (left, top, width, height) in part.boxes.items():
            self.node(node, x + left, y + top, width, height, level)
        for route in part.paths:
            self.arrow(route, x, y, level)
        for label in part.labels:
            self.text(x + label.x, y + label.y, label.text, SMALL, ha="left", color=_SOFT)
        for node, (left, top, body) in part.inner.items():
            for (_, out), at in body.ports.items():
                if not out:  # past the name
                    ends = [x + left + at] * 2, [y + part.boxes[node][1], y + top]
                    self.axes.plot(*ends, color=_INK, lw=0.9, zorder=level + 0.6)
            self.draw(body, x + left, y + top, level + 1)

    def node(self, node: Node, x: float, y: float, w: float, h: float, level: int) -> None:
        box = f"round,pad=0,rounding_size={4.0 if node.call else h / 2 - 0.01}"
        style = {"fc": self.colour(node, level), "ec": _LINE, "lw": 0.8, "zorder": level}
        patch = self.patches.FancyBboxPatch((x, y), w, h, box, **style)
        patch.set_gid("body" if node.graph else node.sort)
        self.axes.add_patch(patch)
        if node.sort == "weights":
            patch.set_linestyle("--")
        lines = self.words.lines(node)
        left, top = (x + 7, y + 10) if node.graph else (x + w / 2, y + h / 2)
        top -= 0.0 if node.graph else LINE * (len(lines) - 1) / 2
        for i, line in enumerate(lines):
            size = SMALL if i or node.sort == "op" else LARGE
            bold = node.call is not None and not i
            self.text(left, top + LINE * i, line, size, bold, ha="left" if node.graph else "center")
        if node.call and node.call.steps and not node.is_gradient:
            self.loop(x + w, y, h, level)

    def colour(self, node: Node, level: int) -> str:
        if node.graph:
            return _BODIES[(level - 1) % 2]
        return colour_of(node.call) if node.call else "#ffffff"

    def loop(self, x: float, y: float, h: float, level: int) -> None:
        """An arrow from the right side of a box back to it."""
        low, high, far = y + h - min(8, h / 4), y + min(8, h / 4), x + LOOP + 1
        points = [(x, low), (far, low + 2), (far, high - 2), (x, high)]
        self.curved(points, [1, 4, 4, 4], _HEAD, level, "-")

    def arrow(self, route: Path, x: float, y: float, level: int) -> None:
        (px, py), *rest = [(x + a, y + b) for a, b in route.points]
        points, codes = [(px, py)], [1]
        for qx, qy in rest:
            if route.corners or abs(qx - px) < 0.3 or qy == py:
                points, codes = [*points, (qx, qy)], [*codes, 2]
            else:
                middle = (py + qy) / 2
                points += [(px, middle), (qx, middle), (qx, qy)]
                codes += [4, 4, 4]
            px, py = qx, qy
        goes_on = route.edge.target.sort == "port" or route.edge.into
        line = "--" if route.edge.value.weights else "-"
        self.curved(points, codes, "-" if goes_on else _HEAD, level, line)

    def curved(self, points: list, codes: list[int], head: str, level: int, line: str) -> None:
        """A line by the codes of a matplotlib path: 1 begins, 2 is straight, 4 a cubic curve."""
        style = {"fc": _INK, "ec": _INK, "lw": 0.9, "ls": line, "zorder": level + 0.5}
        patch = self.patches.FancyArrowPatch(
            path=self.curve(points, codes), arrowstyle=head, fill=head == _HEAD, shrinkA=0,
            shrinkB=0, capstyle="butt", joinstyle="round", **style
        )  # fmt: skip
        patch.set_gid("arrow")
        self.axes.add_patch(patch)

    def text(self, x: float, y: float, text: str, size: float, bold: bool = False, **style: Any):
        style = {"ha": "center", "va": "center_baseline", "color": _INK, "zorder": 30, **style}
        weight = "bold" if bold else "normal"
        self.axes.text(x, y, text, fontsize=size, weight=weight, parse_math=False, **style)


def colour_of(call: Call) -> str:
    kind = call.layer.name
    for shade, words in _COLOURS:
        if any(word in kind for word in words):
            return shade
    return _COMPOSED if call.layer.children else _FUNCTION
