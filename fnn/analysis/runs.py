"""A plot of training runs, from their logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fnn.analysis.figures import plain, pyplot
from fnn.core import checks, errors


@errors.named
def runs(
    logs: Mapping[str, Any],
    names: str | Sequence[str] = "loss",
    *,
    x: str = "step",
    smooth: int | None = None,
    log: bool | Sequence[str] = False,
    axes: Any = None,
) -> Any:
    """Training runs from their logs, in one panel per metric: a colour for each run.

    A thin line is `train/name` of each row, a thick one its mean over a window, and dots are
    `eval/name`.

    - `logs`: by the names of the runs, their columns as `fnn.log.read` returns them, or those of
      one run.
    - `names`: of the metrics, without "train/" and "eval/"; a metric named otherwise has one line.
    - `x`: "step", "epoch" or "time", in hours from a run's first row.
    - `smooth`: rows in the window, centred; None takes a fiftieth of the run, 1 does not smooth.
      Values that are not finite are left out of it.
    - `log`: whether the y axes are logarithmic, or the names of the metrics whose axes are.
    - `axes`: one for each metric.

    Raises InputError if no run has the metric.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> step, nan = np.arange(1, 5), np.nan
    >>> columns = {"step": step, "train/loss": 1 / step, "eval/loss": np.array([nan, 1, nan, 0.5])}
    >>> figure = runs({"adam": columns, "sgd": columns})
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['adam', 'sgd', 'train', 'eval']
    """
    checks.choice("x", x, ("step", "epoch", "time"))
    named = {"": logs} if "step" in logs and np.ndim(logs["step"]) == 1 else dict(logs)
    names = [names] if isinstance(names, str) else list(names)
    if smooth is not None:
        checks.count("smooth", smooth)
    for name in names:
        if not any(_found(columns, name) for columns in named.values()):
            some = sorted({key for columns in named.values() for key in columns})
            raise errors.InputError(f"a metric of {errors.names(some)}", name, "name one of them")
    if axes is None:
        size = (6 * len(names), 4)
        _, grid = pyplot().subplots(
            1, len(names), figsize=size, squeeze=False, layout="constrained"
        )
        axes = list(grid.flat)
    panels = list(axes) if isinstance(axes, (Sequence, np.ndarray)) else [axes]
    if len(panels) != len(names):
        raise errors.InputError(f"{len(names)} axes", f"{len(panels)}", "pass one for each metric")
    for panel, name in zip(panels, names, strict=True):
        for i, (label, columns) in enumerate(named.items()):
            _run(panel, f"C{i}", label, columns, name, x, smooth)
        scale = "log" if (log if isinstance(log, bool) else name in log) else "linear"
        panel.set(xlabel="time in hours" if x == "time" else x, ylabel=name, yscale=scale)
        plain(panel.figure, panel)
        kinds = {kind for columns in named.values() for kind in _found(columns, name)}
        if {"train", "eval"} <= kinds:  # what is a line, and what a dot
            panel.plot([], [], color="grey", label="train")
            panel.plot([], [], "o", color="grey", markersize=5, label="eval")
        if any(named) or {"train", "eval"} <= kinds:
            panel.legend(frameon=False)
    return panels[0].figure


def _found(columns: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The columns of a metric, by what they are."""
    columns_of = {"train": f"train/{name}", "eval": f"eval/{name}", "": name}
    return {kind: columns[key] for kind, key in columns_of.items() if key in columns}


def _run(
    axes: Any, colour: str, label: str, columns: Mapping[str, Any], name: str, x: str, smooth: Any
) -> None:
    """One metric of one run."""
    along = np.asarray(columns[x], float)
    if x == "time" and len(along):
        along = (along - along[0]) / 3600
    style: dict[str, Any] = {"color": colour}
    entry: dict[str, Any] = {"label": label or None}
    for kind, values in _found(columns, name).items():
        values = np.asarray(values, float)
        there = ~np.isnan(values)
        if kind == "eval":
            dots = {"markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.6}
            axes.plot(along[there], values[there], "o", zorder=3, **style, **dots, **entry)
        else:
            window = smooth or max(1, there.sum() // 50)
            axes.plot(along[there], values[there], linewidth=0.6, alpha=0.35, **style)
            axes.plot(along[there], _smoothed(values[there], window), **style, **entry)
        entry = {}


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the finite values in a centred window, which is shorter at both ends."""
    finite = np.isfinite(values)
    total, count = (_sums(part, window) for part in (np.where(finite, values, 0), finite))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _sums(values: np.ndarray, window: int) -> np.ndarray:
    """The sum over the window around each value.

    Each is the end of one block of `window` values and the start of the next: unlike differences of
    running sums, these are exact after a peak of 1e20.
    """
    n, before = len(values), (window - 1) // 2
    padded = np.pad(values.astype(float), (before, -(n + before) % window + window))
    blocks = padded.reshape(-1, window)
    starts = blocks.cumsum(axis=1).ravel()
    ends = blocks[:, ::-1].cumsum(axis=1)[:, ::-1].ravel()
    i = np.arange(n)
    return ends[i] + np.where(i % window, starts[i + window - 1], 0)
