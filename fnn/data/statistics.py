"""Statistics of data in float64: of arrays, of trees of them, and of streams of batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.core
import numpy as np

from fnn.core import checks, errors
from fnn.core.shapes import native
from fnn.core.types import Tree

CHUNK = 2**20  # values that are looked at together: statistics need little memory beside the data
SHOWN = 8  # columns in a message

Axis: TypeAlias = int | tuple[int, ...] | None


class Moments(NamedTuple):
    """The statistics of one array, in float64 [kept axes], of its finite values.

    - `count`, `missing`, `infinite`: the numbers of finite values, NaN and infinities.
    - `mean`, `m2`: the mean, and the sum of squared deviations from it.
    - `low`, `high`: the extremes; +inf and -inf if there is no finite value.
    """

    count: np.ndarray
    missing: np.ndarray
    infinite: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    low: np.ndarray
    high: np.ndarray


def moments(x: Tree | Iterator[Tree], axis: Axis) -> Tree:
    """The `Moments` of each array of a tree, or of a stream of such trees."""
    found = None
    for rows in chunks(x):
        found = updated(found, rows, axis)
    return found


def updated(found: Tree | None, rows: Tree, axis: Axis) -> Tree:
    """The moments of what was seen so far, or nothing, and of these rows."""
    new = mapped(lambda a: _moments(a, axis), rows)
    return new if found is None else jax.tree.map(_merged, found, new, is_leaf=is_moments)


def is_moments(x: Any) -> bool:
    return isinstance(x, Moments)


def mapped(fn: Callable, x: Tree, *rest: Tree) -> Tree:
    """A function of each leaf of data, or of its moments; errors inside it name the leaf."""

    def call(path, *leaves):
        name = errors.path_of(path)
        if not name:
            return fn(*leaves)
        with errors.at(name):
            return fn(*leaves)

    return jax.tree_util.tree_map_with_path(call, x, *rest, is_leaf=is_moments)


def some_finite(m: Moments) -> None:
    """Refuse infinities, and columns without any value."""
    if m.infinite.any():
        raise errors.InputError(
            "finite values or NaN",
            f"{m.infinite.sum():,.0f} infinities{places(m.infinite > 0)}",
            "make NaN of them, as np.where(np.isinf(x), np.nan, x), or clip them",
        )
    if not m.count.all():
        raise errors.InputError(
            "at least one value that is not NaN in each column",
            f"none{places(m.count == 0)}",
            "leave out what is always missing",
        )


def finite(what: str, stat: np.ndarray) -> np.ndarray:
    """A statistic that float64 holds."""
    stat = np.asarray(stat)
    if not np.isfinite(stat).all():
        raise errors.InputError(
            f"values whose {what} float64 holds",
            f"larger ones{places(~np.isfinite(stat))}",
            "scale them first",
        )
    return stat


def places(mask: np.ndarray) -> str:
    """Where a mask is true, as " in columns 0, 2"; "" for a single number."""
    if mask.ndim == 0:
        return ""
    found = [str(i[0]) if mask.ndim == 1 else str(tuple(map(int, i))) for i in np.argwhere(mask)]
    more = [f"{len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return f" in column{'s' if len(found) > 1 else ''} {', '.join(found[:SHOWN] + more)}"


# --- what data is


def whole(x: Tree, what: str) -> Tree:
    """Data that is no stream, for statistics that need it all at once."""
    if isinstance(x, Iterator):
        raise errors.InputError(
            f"arrays, since {what} of a stream cannot be found exactly in bounded memory",
            "an iterator",
            "pass a sample of it, as one array",
        )
    return to_fit(x)


def to_fit(x: Tree) -> Tree:
    """Data as NumPy arrays [n, ...], of any kind; refuses splits, empty data and tracers."""
    if isinstance(x, Mapping) and len(_SPLITS & {*x}) > 1:  # a column may have one of the names
        raise errors.InputError(
            "the data of one split",
            f"a dict with {errors.names(map(str, x))}",
            'what is fitted may not see other splits: pass data["train"], or use fnn.data.prepare',
        )
    x = mapped(_to_fit, x)
    if checks.examples("x", x) == 0:
        raise errors.ShapeError("at least one example", errors.show(x), "pass data with n > 0")
    return x


_SPLITS = {"train", "valid", "val", "validation", "test"}


def _to_fit(a: Any) -> np.ndarray:
    if isinstance(a, jax.core.Tracer):
        raise errors.InputError("data to fit on", "a traced array", "fit outside jit")
    if not isinstance(a, (np.ndarray, jax.Array)):
        mend = "make arrays of it, as fnn.data.from_frame of a table, or pass iter(batches)"
        raise errors.InputError("arrays [n, ...]", errors.show(a), mend)
    if isinstance(a, np.ma.MaskedArray):
        native(a)  # which refuses it
    return np.asarray(a)


def streamed(x: Tree | Iterator[Tree]) -> Iterator[Tree]:
    """The batches of a stream, all alike, or the one that data is."""
    if not isinstance(x, Iterator):
        yield to_fit(x)
        return
    first = None
    for batch in x:
        batch = to_fit(batch)
        form = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], np.float32), batch)
        first = form if first is None else first
        if form != first:
            got = errors.show(batch)
            mend = "make all batches alike"
            raise errors.ShapeError(f"batches like the first, {errors.show(first)}", got, mend)
        yield batch
    if first is None:
        raise errors.ShapeError("at least one batch", "none", "pass an iterator that is not spent")


def chunks(x: Tree | Iterator[Tree]) -> Iterator[Tree]:
    """The numbers of data or of a stream, some rows at a time."""
    for batch in streamed(x):
        mapped(refuse_others, batch)
        leaves = jax.tree.leaves(batch)
        rows = max(CHUNK // max(max(a[0].size for a in leaves), 1), 1)
        for start in range(0, len(leaves[0]), rows):
            some = slice(start, start + rows)
            yield jax.tree.map(lambda a, some=some: a[some], batch)


def refuse_others(a: Any) -> None:
    """Refuse an array that is not of real numbers."""
    checks.real("x", a)
    if isinstance(a, np.ndarray):
        if a.dtype.kind in "OUSTMm":
            mend = "make numbers of it, as fnn.data.encode does of categories"
            raise errors.DtypeError("x of numbers", f"x {errors.show(a)}", mend)
        native(a[:0] if a.ndim else a, "x")


def kept(a: np.ndarray, axis: Axis) -> tuple[int, ...]:
    """The axes that keep their own statistics, counted from 0, in order."""
    axes = () if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if a.ndim == 1 and axes == (-1,):
        return ()
    whole = all(isinstance(i, int) and not isinstance(i, bool) for i in axes)
    found = sorted({i % a.ndim for i in axes if -a.ndim <= i < a.ndim}) if whole else []
    if len(found) != len(axes) or 0 in found:
        raise errors.OptionError(
            f"axis to be None or axes of x {a.shape} other than 0, which counts the examples",
            errors.show(axis),
            "pass axis=-1 for statistics of each column, None for one of all values",
        )
    return tuple(found)


def as_columns(a: np.ndarray, axis: Axis) -> np.ndarray:
    """The values behind each statistic, in float64, one beside the other: [kept axes, values]."""
    axes = kept(a, axis)
    moved = np.moveaxis(a, axes, range(len(axes)))
    own, others = moved.shape[: len(axes)], moved.shape[len(axes) :]
    return moved.reshape(*own, math.prod(others)).astype(np.float64, order="C")


def shaped(stat: np.ndarray, a: np.ndarray, axis: Axis) -> np.ndarray:
    """A statistic [kept axes] in the shape that meets the last axes of x."""
    axes = kept(a, axis)
    span = range(axes[0], a.ndim) if axes else ()
    return np.asarray(stat).reshape([a.shape[i] if i in axes else 1 for i in span])


def _moments(a: np.ndarray, axis: Axis) -> Moments:
    """Two passes, the second of which takes out what the rounded mean leaves."""
    columns = as_columns(a, axis)  # [kept axes, values]
    there = np.isfinite(columns)
    whole = there.all()
    count, missing = (mask.sum(-1, dtype=np.float64) for mask in (there, np.isnan(columns)))
    divisor = np.maximum(count, 1)

    def or_else(values: np.ndarray, other: float) -> np.ndarray:
        return values if whole else np.where(there, values, other)

    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
        mean = or_else(columns, 0).sum(-1) / divisor
        deviation = or_else(columns - mean[..., None], 0)
        rest = deviation.sum(-1)
        m2 = np.square(deviation).sum(-1) - rest * rest / divisor
    stats = Moments(
        count,
        missing,
        columns.shape[-1] - count - missing,
        mean,
        np.maximum(m2, 0),
        or_else(columns, np.inf).min(-1, initial=np.inf),
        or_else(columns, -np.inf).max(-1, initial=-np.inf),
    )
    return Moments(*(shaped(stat, a, axis) for stat in stats))


def _merged(a: Moments, b: Moments) -> Moments:
    """The moments of both: Chan, Golub & LeVeque (1979)."""
    count = a.count + b.count
    share = b.count / np.maximum(count, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        delta = b.mean - a.mean
        mean = a.mean + delta * share  # without values, a's mean is 0
        m2 = a.m2 + b.m2 + delta * (a.count * share) * delta  # 0 where one has no values
    missing, infinite = a.missing + b.missing, a.infinite + b.infinite
    low, high = np.minimum(a.low, b.low), np.maximum(a.high, b.high)
    return Moments(*map(np.asarray, (count, missing, infinite, mean, m2, low, high)))
