"""The metrics of a run: their last values and small curves, in a notebook or as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.analysis import marks
from fnn.core import errors, html

_RUNS = 12  # lines of one metric that are drawn


class Curve(NamedTuple):
    """One metric: its name, as "train/loss", and its values, [runs, steps]."""

    name: str
    values: np.ndarray

    @property
    def last(self) -> float:
        """The last value, of several runs the median of those that are finite; NaN if none is."""
        if not self.values.size:
            return np.nan
        ends = self.values[:, -1]
        finite = ends[np.isfinite(ends)]
        return float(np.median(finite if len(ends) > 1 and finite.size else ends))

    @property
    def wrong(self) -> int:
        """How many values are not finite."""
        return int((~np.isfinite(self.values)).sum())

    def ends(self) -> tuple[float, float]:
        """The lowest and the highest finite value; NaN if there is none."""
        finite = self.values[np.isfinite(self.values)]
        return (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)


@dataclass(frozen=True, repr=False)
class Curves:
    """The metrics of a history; `ended`: why the run ended, if the history says so."""

    rows: tuple[Curve, ...]
    ended: str = ""

    def __repr__(self) -> str:
        table = [("metric", "steps", "last", "lowest", "highest", "", "")]
        for row in self.rows:
            table.append((row.name, *_numbers(row), _bars(row), _notes(row)))
        return "\n".join([*marks.columns(table), *filter(None, [self.ended])])

    def _repr_html_(self) -> str:
        rows = []
        for row in self.rows:
            low, high = row.ends()
            some = np.array([marks.thinned(run) for run in row.values[:_RUNS]])
            title = f"{row.name} from {low:.4g} to {high:.4g}"
            picture = marks.curves(some, title) if row.values.size else ""
            last = html.text if np.isfinite(row.last) or not row.values.size else html.warning
            steps, *numbers = _numbers(row)
            cells = [html.text(steps), last(numbers[0]), *map(html.text, numbers[1:])]
            notes = html.warning(_notes(row)) if row.wrong else html.faint(_notes(row))
            rows.append([html.bold(row.name), *cells, picture, notes])
        table = html.table(("", "steps", "last", "lowest", "highest", "", ""), rows)
        return html.page(table, html.faint(self.ended))


@errors.named
def curves(history: Mapping[str, Any]) -> Curves:
    """The last value, the range and a small curve of every metric of a run.

    - `history`: as `fnn.train.fit` and `fnn.train.run` return it, or any dict of arrays, nested or
      not: each [steps], or [runs, steps] of runs side by side. Other arrays are left out.

    In a notebook the result is a table with drawings; printed, it is one of text. For a figure to
    keep, see `fnn.analysis.plot.curves`.

    >>> import fnn
    >>> found = fnn.analysis.curves({"train": {"loss": np.array([4.0, 2.0, 1.0])}})
    >>> found.rows[0].name, found.rows[0].last
    ('train/loss', 1.0)
    >>> print(found)
    metric      steps  last  lowest  highest
    train/loss  3      1     1       4        █▄▁
    """
    if not isinstance(history, Mapping):
        got, mend = errors.show(history), "pass the second result of fnn.train.fit"
        raise errors.InputError("history, a dict of metrics", got, mend)
    rows = tuple(Curve(name, values) for name, values in _arrays(history))
    return Curves(rows, str(history.get("ended") or ""))


def _arrays(history: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for keys, leaf in jax.tree_util.tree_leaves_with_path(dict(history)):
        name = errors.path_of(keys)
        if name == "eval_step" or not hasattr(leaf, "dtype") or not 1 <= leaf.ndim <= 2:
            continue
        if leaf.dtype == bool or jax.numpy.issubdtype(leaf.dtype, np.number):
            yield name, np.atleast_2d(np.asarray(jax.device_get(leaf)).astype(float))


def _bars(row: Curve) -> str:
    """The first run as bars, of the means of its finite values, whose sum a float may not hold."""
    run = row.values[0] if row.values.size else row.values.reshape(-1)
    unit = np.abs(run[np.isfinite(run)]).max(initial=0) or 1.0
    parts = np.array_split(run / unit, min(40, run.size)) if run.size else []
    good = [part[np.isfinite(part)] for part in parts]
    means = [float(part.mean()) for part in good if part.size]
    low, span = min(means, default=0.0), (max(means, default=0.0) - min(means, default=0.0)) or 1.0
    of = iter(means)
    return marks.bars([0.1 + 0.9 * (next(of) - low) / span if p.size else 0.0 for p in good])


def _numbers(row: Curve) -> tuple[str, str, str, str]:
    shown = (f"{value:.4g}" for value in (row.last, *row.ends()))
    last, low, high = shown if row.values.size else ("", "", "")
    return f"{row.values.shape[1]:,}", last, low, high


def _notes(row: Curve) -> str:
    runs = len(row.values)
    notes = [f"median of {runs:,} runs" if runs > 1 else ""]
    notes += [f"{_RUNS} drawn" if runs > _RUNS else ""]
    notes += [f"{row.wrong:,} not finite" if row.wrong else ""]
    return ", ".join(filter(None, notes))
