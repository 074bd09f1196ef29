"""What plots share: matplotlib, where it is installed, and axes in one style."""

from __future__ import annotations

from typing import Any


def pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("fnn.analysis.plot needs matplotlib: pip install 'fnn[plot]'") from None
    return plt


def new_axes(axes: Any, square: bool = False) -> tuple[Any, Any]:
    if axes is not None:
        return axes.figure, axes
    return pyplot().subplots(figsize=(5, 5) if square else (6, 4), layout="constrained")


def plain(figure: Any, axes: Any) -> Any:
    axes.spines[["top", "right"]].set_visible(False)
    return figure
