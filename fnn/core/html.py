"""HTML for notebooks: folded trees and tables in the colours of the page, all text escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

_FONT = "font:13px/1.5 ui-monospace,Menlo,Consolas,monospace;text-align:left"
_CELL = "padding:0 10px 0 0;text-align:left;white-space:nowrap"
_FAINT = "opacity:.65"
MOST = 400  # layers of a network that are shown


def text(value: Any) -> str:
    """Text that stands for itself in HTML.

    >>> text('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(str(value), quote=True)


def bold(value: Any) -> str:
    return f"<b>{text(value)}</b>"


def faint(value: Any) -> str:
    return f'<span style="{_FAINT}">{text(value)}</span>'


def warning(value: Any) -> str:
    """Text in a red that is legible on white and on black."""
    return f'<b style="color:#e5484d">{text(value)}</b>'


def page(*parts: str) -> str:
    """What a notebook shows of an object."""
    return f'<div style="{_FONT}">{"".join(parts)}</div>'


def line(*parts: str) -> str:
    return f"<div>{' '.join(filter(None, parts))}</div>"


def folded(head: str, inside: Iterable[str], is_open: bool = True) -> str:
    """A part that folds, under its head."""
    mark = " open" if is_open else ""
    below = f'<div style="padding-left:1.4em">{"".join(inside)}</div>'
    return f'<details{mark}><summary style="cursor:pointer">{head}</summary>{below}</details>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already, under a header of text, if there is one."""
    faded = f"{_CELL};{_FAINT};font-weight:normal"
    head = "".join(f'<th style="{faded}">{text(name)}</th>' for name in header)
    head = f"<thead><tr>{head}</tr></thead>" if header else ""
    lines = ("".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    style = "border-collapse:collapse;border:0;margin:0 0 4px;font:inherit;color:inherit"
    return f'<table style="{style}">{head}<tbody>{body}</tbody></table>'


def of_layer(layer: Any) -> str:
    """A network as a folded tree of names and kinds; layers beyond `MOST` are counted alone."""
    left = MOST

    def part(name: str, layer: Any, depth: int) -> str:
        nonlocal left
        left -= 1
        head = " ".join(filter(None, [bold(name) if name else "", faint(layer.name)]))
        inside, out = [], 0
        for child_name, child in layer.children:
            if left > 0:
                inside.append(part(child_name, child, depth + 1))
            else:
                out += _count(child)
        inside += [line(faint(f"… and {out:,} more"))] if out else []
        return folded(head, inside, depth < 2) if inside else line(head)

    return page(part("", layer, 0))


def _count(layer: Any) -> int:
    return 1 + sum(_count(child) for _, child in layer.children)


def of_fields(name: str, fields: Iterable[tuple[str, Any]]) -> str:
    """A declaration: its name, and a table of what it says."""
    return page(bold(name), table((), [(faint(k), text(v)) for k, v in fields]))
