"""A table looked through before training: what is missing, constant, twice there, or a leak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fnn.core import errors
from fnn.core.dtypes import is_floating
from fnn.core.shapes import native
from fnn.data.categories import is_missing
from fnn.data.frames import check_names

LEAK = 0.99  # the score from which a column tells the label
EXPLAINED = 0.9  # the share of what the most frequent class gets wrong that a leak gets right
FEW = 20  # rows with fewer of which any column may tell the label by chance
CLASSES = 20  # whole numbers with more distinct values are a target of regression


class Column(NamedTuple):
    """One column of a report.

    - `name`, `dtype`: as in the table.
    - `missing`: how many values are None, NaN or NA; `share`: of all rows.
    - `infinite`: how many are infinite.
    - `distinct`: how many values there are, without missing ones.
    - `constant`: whether all rows are the same.
    - `equal`: the first column before it that has the same values; None if there is none.
    - `score`: how well it alone tells the label (see `report`); None without a label.
    - `leak`: whether it tells the label so well that it may have been made of it.
    """

    name: str
    dtype: str
    missing: int
    share: float
    infinite: int
    distinct: int
    constant: bool
    equal: str | None
    score: float | None
    leak: bool


@dataclass(frozen=True)
class Report:
    """What `report` found; `str` gives a table in plain text, rich prints one of its own.

    >>> print(report({"a": np.array([1, 1])}))
    column  dtype  missing  infinite  distinct  remarks
    a       int64                            1  constant
    2 rows, 1 of them a repetition of another
    """

    rows: int
    repeated: int
    label: str | None
    columns: tuple[Column, ...]

    def __getitem__(self, name: str) -> Column:
        """The column of a name."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def table(self) -> Any:
        """The table for `rich.print` (extra `table`)."""
        try:
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            raise ImportError("the table needs rich: pip install 'fnn[table]'") from None
        table = Table(caption=self._last(), caption_justify="left")
        headers, *rows = self._cells()
        for at, header in enumerate(headers):
            table.add_column(header, justify="right" if _is_number(at, headers) else "left")
        for row in rows:
            table.add_row(*map(Text, row))  # as it stands: "datetime64[ns]" is no markup
        return table

    def __rich__(self) -> Any:
        return self.table()

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for row in cells:
            padded = [
                cell.rjust(width) if _is_number(at, row) else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
        return "\n".join([*lines, self._last()])

    def _cells(self) -> list[list[str]]:
        scores = ["score"] if self.label is not None else []
        cells = [["column", "dtype", "missing", "infinite", "distinct", *scores, "remarks"]]
        for c in self.columns:
            remarks = ["constant"] * c.constant + [f"equals {c.equal}"] * (c.equal is not None)
            remarks += ["tells the label"] * c.leak + ["label"] * (c.name == self.label)
            missing = f"{c.missing:,} ({100 * c.share:.3g}%)" if c.missing else ""
            score = ["" if c.score is None else f"{c.score:.3f}"] if scores else []
            infinite = f"{c.infinite:,}" if c.infinite else ""
            numbers = [missing, infinite, f"{c.distinct:,}", *score]
            cells.append([c.name, c.dtype, *numbers, ", ".join(remarks)])
        return cells

    def _last(self) -> str:
        of = f", {self.repeated:,} of them a repetition of another" if self.repeated else ""
        return f"{self.rows:,} row{'s' * (self.rows != 1)}{of}"


def _is_number(at: int, row: list[str]) -> bool:
    return 2 <= at < len(row) - 1


@errors.named
def report(table: Any, label: str | None = None) -> Report:
    """What to know of a table before training on it: what is missing, repeated, or tells the label.

    - `table`: a dict of columns [n], numbers, strings or dates; or a pandas data frame.
    - `label`: the column to be predicted. Each other column is scored by how well it alone tells
      it: the label of the rows at even places is predicted from the rows at odd places, and the
      reverse, by the most frequent class (or the mean) among the rows with the nearest number, or
      the same string; rows that repeat another count once. The score is the accuracy, for a label
      of floats or of more than 20 whole numbers R^2. A column with at least 0.99 that gets right
      nine tenths of what the most frequent class gets wrong may have been made of the label; from
      20 rows on it is marked as a leak.

    Returns a `Report(rows, repeated, label, columns)` of plain data: per column its dtype, the
    numbers of missing, infinite and distinct values, whether it is constant, an earlier column that
    is equal, score and leak; `report["age"]` is one of them. `print` shows a table. Raises
    InputError for what is no table, ShapeError for columns that are not all [n], OptionError for an
    unknown label, DtypeError for values that cannot be compared.

    >>> i = np.arange(60)
    >>> x, died, lifeboat = i % 11, i > 29, i < 30
    >>> found = report({"x": x, "copy": 1.0 * x, "died": died, "lifeboat": lifeboat}, "died")
    >>> found["copy"].equal, [c.name for c in found.columns if c.leak], found.repeated
    ('x', ['lifeboat'], 38)
    """
    columns = _columns(table)
    n = len(next(iter(columns.values())).codes)
    if label is not None and label not in columns:
        raise errors.OptionError("the label's name", label, f"one of {errors.names(columns)}")
    rows = np.zeros(n, np.int64)  # the number of each row among distinct ones
    for c in columns.values():
        rows = np.unique(rows * (c.distinct + 1) + c.codes + 1, return_inverse=True)[1].ravel()
    first = np.sort(np.unique(rows, return_index=True)[1])
    score = _Scores(columns[label], first) if label is not None else None
    found = []
    for name, c in columns.items():
        missing = int((c.codes < 0).sum())
        told = score(c) if score is not None and name != label else None
        leak = told is not None and score is not None and score.is_leak(told)
        found.append(
            Column(
                name=name,
                dtype=c.dtype,
                missing=missing,
                share=missing / n if n else 0.0,
                infinite=int(np.isinf(c.numbers).sum()) if c.numbers is not None else 0,
                distinct=c.distinct,
                constant=c.distinct + (missing > 0) <= 1,
                equal=next((b.name for b in found if _equal(columns[b.name], c)), None),
                score=told,
                leak=leak,
            )
        )
    return Report(n, n - len(first), label, tuple(found))


class _Values(NamedTuple):
    """A column: the number of each value, -1 where it is missing."""

    dtype: str
    codes: np.ndarray  # int64 [n]
    values: list  # of each code; numbers in order, others as they come
    numbers: np.ndarray | None  # float64 [n], NaN where missing; None for strings

    @property
    def distinct(self) -> int:
        return len(self.values)


def _columns(table: Any) -> dict[str, _Values]:
    if hasattr(table, "iloc"):
        series = {name: table[name] for name in check_names(table.columns)}
        arrays = {name: (str(s.dtype), _of_series(s)) for name, s in series.items()}
    elif isinstance(table, Mapping):
        arrays = {name: (None, table[name]) for name in check_names(table)}
    else:
        arrays = {}
    if not arrays:
        mend = 'pass {"age": ages, "sex": sexes}, or a data frame'
        raise errors.InputError("a table of columns by name", errors.show(table), mend)
    found = {}
    for name, (dtype, a) in arrays.items():
        with errors.at(str(name)):
            found[name] = _values(dtype, a)
    lengths = {name: len(c.codes) for name, c in found.items()}
    if len(set(lengths.values())) > 1:
        raise errors.ShapeError("columns of one length", errors.show(lengths), "pass one table")
    return found


def _of_series(series: Any) -> np.ndarray:
    """A pandas column as NumPy's: nullable and categorical ones as objects."""
    if isinstance(series.dtype, np.dtype):
        return series.to_numpy()
    return series.astype(object).to_numpy()


def _values(dtype: str | None, a: Any) -> _Values:
    if not (hasattr(a, "shape") and hasattr(a, "dtype")) or len(a.shape) != 1:
        mend = "name each column, as from x[:, 0]"
        raise errors.ShapeError("a column [n]", errors.show(a), mend)
    if isinstance(a, np.ma.MaskedArray):
        native(a, "a column")  # which refuses it
    a = np.asarray(a)
    dtype = str(a.dtype) if dtype is None else dtype
    if a.dtype.kind in "mM":
        dates = a.astype(np.int64)
        missing, numbers = np.isnat(a), np.where(np.isnat(a), np.nan, dates.astype(np.float64))
        return _numbered(dtype, dates[~missing], missing, numbers)
    if a.dtype.kind in "biu" or is_floating(a):
        numbers = a.astype(np.float64)
        return _numbered(dtype, a[~np.isnan(numbers)], np.isnan(numbers), numbers)
    if a.dtype.kind not in "OUT":
        raise errors.DtypeError("numbers, strings or dates", errors.show(a), "leave it out")
    return _of_objects(dtype, a.tolist())


def _numbered(dtype: str, present: Any, missing: np.ndarray, numbers: np.ndarray) -> _Values:
    values, codes = np.unique(present, return_inverse=True)
    whole = np.full(len(missing), -1, np.int64)
    whole[~missing] = codes.ravel()
    return _Values(dtype, whole, values.tolist(), numbers)


_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)


def _of_objects(dtype: str, listed: list) -> _Values:
    """Objects, which are numbers if all of them are."""
    missing = np.array([is_missing(v) for v in listed], bool)
    present = [v for v, gone in zip(listed, missing, strict=True) if not gone]
    if present and all(isinstance(v, _NUMBERS) for v in present):
        numbers = np.full(len(listed), np.nan)
        numbers[~missing] = present
        return _numbered(dtype, np.array(present), missing, numbers)  # float64 has no 2**60 + 1
    try:
        table = {v: i for i, v in enumerate(dict.fromkeys(present))}
    except TypeError:
        kinds = errors.names(sorted({type(v).__name__ for v in present}))
        raise errors.DtypeError(
            "values that can be compared", f"objects of {kinds}", "leave it out"
        ) from None
    codes = np.array([-1 if gone else table[v] for v, gone in zip(listed, missing, strict=True)])
    return _Values(dtype, codes.astype(np.int64), list(table), None)


def _equal(a: _Values, b: _Values) -> bool:
    """Whether two columns have the same values, missing ones in the same rows."""
    return a.values == b.values and np.array_equal(a.codes, b.codes)


class _Scores:
    """How well columns tell a label."""

    def __init__(self, label: _Values, first: np.ndarray):
        numbers = label.numbers
        known = label.codes >= 0
        if numbers is not None:
            known &= np.isfinite(numbers)
        floats = numbers is not None and (numbers[known] % 1 != 0).any()
        self.classes = not (floats or numbers is not None and label.distinct > CLASSES)
        self.rows = first[known[first]]
        y = label.codes if self.classes or numbers is None else numbers
        self.y = y[self.rows]
        count = max(len(self.y), 1)
        self.base = 0.0
        if self.classes and len(self.y):
            self.base = np.bincount(self.y).max() / count

    def __call__(self, column: _Values) -> float | None:
        """Accuracy or R^2; None where the label does not vary."""
        if len(self.rows) < 2 or self.base == 1.0:
            return None
        x = column.codes if column.numbers is None else column.numbers
        x = x[self.rows].astype(np.float64)
        x = np.where(column.codes[self.rows] < 0, np.nan, x)
        exact = column.numbers is None
        guess = np.empty(len(x), np.float64)
        for half in (0, 1):
            known = (x[1 - half :: 2], self.y[1 - half :: 2])
            guess[half::2] = self._predict(*known, x[half::2], exact)
        if self.classes:
            return float((guess == self.y).mean())
        residual, spread = self.y - guess, self.y - self.y.mean()
        return float(1 - residual @ residual / (spread @ spread)) if spread.any() else None

    def is_leak(self, score: float) -> bool:
        if len(self.rows) < FEW or score < LEAK:
            return False
        return score - self.base >= EXPLAINED * (1 - self.base)

    def _predict(self, x: np.ndarray, y: np.ndarray, query: np.ndarray, exact: bool) -> np.ndarray:
        """The label at the nearest of x, or at the same one; without one, the usual label."""
        values, group = np.unique(x, return_inverse=True)  # all NaN are one, the last
        told = self._usual(y, group.ravel(), len(values))
        otherwise = self._usual(y, np.zeros(len(y), np.int64), 1)[0]
        gone = np.isnan(values)
        at_gone = told[gone][0] if gone.any() else otherwise
        values, told = values[~gone], told[~gone]
        guess = np.where(np.isnan(query), at_gone, otherwise)
        if not len(values):
            return guess
        with np.errstate(invalid="ignore", over="ignore"):
            right = np.clip(np.searchsorted(values, query), 0, len(values) - 1)
            left = np.maximum(right - 1, 0)
            near = np.where(abs(values[right] - query) < abs(query - values[left]), right, left)
            near = np.where(values[right] == query, right, near)
        known = ~np.isnan(query) & (values[near] == query if exact else True)
        return np.where(known, told[near], guess)

    def _usual(self, y: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
        """The most frequent class, or the mean, of each group."""
        if not self.classes:
            return np.bincount(group, y, groups) / np.bincount(group, minlength=groups)
        classes = int(self.y.max()) + 1
        pairs, counts = np.unique(group * classes + y, return_counts=True)
        order = np.lexsort((pairs, -counts, pairs // classes))
        at = np.searchsorted(pairs[order] // classes, np.arange(groups))
        return (pairs[order] % classes)[at].astype(np.float64)
