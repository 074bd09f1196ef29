"""Small pictures in a line, as SVG in the colour of the text or as bars, and columns of text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fnn.core import html

_BARS = " ▁▂▃▄▅▆▇█"


def bars(counts: Sequence[float]) -> str:
    """Counts as characters, the largest full.

    >>> bars([0, 1, 4, 8])
    ' ▁▄█'
    """
    most = max(counts, default=0) or 1
    return "".join(_BARS[int(np.ceil(8 * count / most))] for count in counts)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line of text for each row, its cells under one another.

    >>> columns([("name", "n"), ("a", "10")])
    ['name  n', 'a     10']
    """
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, wide)).rstrip() for row in rows]


def histogram(counts: Sequence[int], title: str, width: int = 100, height: int = 16) -> str:
    """Counts as an SVG of columns; `title` is shown under the pointer."""
    most, step = max(counts, default=0) or 1, width / max(len(counts), 1)
    path = "".join(
        f"M{i * step:.1f} {height}v{-height * count / most:.1f}h{step - 0.6:.1f}V{height}z"
        for i, count in enumerate(counts)
        if count
    )
    return _svg(f'<path d="{path}" fill="currentColor" fill-opacity=".6"/>', title, width, height)


def curves(rows: np.ndarray, title: str, width: int = 220, height: int = 36) -> str:
    """Rows of values against their number as an SVG of lines, broken where not finite."""
    finite = np.isfinite(rows)
    low, high = (f(rows[finite]) for f in (np.min, np.max)) if finite.any() else (0.0, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        span = (high - low) or 1.0
        y = height - 1.5 - (height - 3) * np.clip((rows - low) / span, 0, 1)
    x = np.linspace(1, width - 1, rows.shape[1]) if rows.shape[1] > 1 else np.array([width / 2])
    shade = 0.9 if len(rows) == 1 else 0.45
    style = f'fill="none" stroke="currentColor" stroke-width="1.2" stroke-opacity="{shade}"'
    lines = "".join(
        f'<path d="{_line(x, row, good)}" {style}/>' for row, good in zip(y, finite, strict=True)
    )
    return _svg(lines, title, width, height)


def _line(x: np.ndarray, y: np.ndarray, good: np.ndarray) -> str:
    parts, pen = [], False
    for i in np.flatnonzero(good):
        joined = pen and good[i - 1]
        alone = not joined and not (i + 1 < len(good) and good[i + 1])
        parts.append(f"{'L' if joined else 'M'}{x[i]:.1f} {y[i]:.1f}{'h.1' if alone else ''}")
        pen = True
    return "".join(parts)


def thinned(row: np.ndarray, most: int = 200) -> np.ndarray:
    """At most about `most` values that keep the lowest and the highest of every stretch.

    >>> thinned(np.array([0.0, 9.0, 1.0, 2.0, -3.0, 4.0]), most=4)
    array([ 0.,  9., -3.,  4.])
    """
    if len(row) <= most:
        return row
    kept: list[float] = []
    for part in np.array_split(row, most // 2):
        good = np.flatnonzero(np.isfinite(part))
        if len(good):
            ends = sorted({good[np.argmin(part[good])], good[np.argmax(part[good])]})
            kept += [*part[ends], *([part[ends[0]]] if len(ends) == 1 else [])]
        else:
            kept += [np.nan, np.nan]
    return np.array(kept)


def _svg(inside: str, title: str, width: int, height: int) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    style = 'style="vertical-align:middle" role="img"'
    return f"<svg {size} {style}><title>{html.text(title)}</title>{inside}</svg>"
