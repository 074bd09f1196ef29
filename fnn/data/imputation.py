"""Missing values, replaced by what is fitted on data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.types import Tree
from fnn.data.fitted import apply, each_leaf
from fnn.data.statistics import (
    Moments,
    as_columns,
    chunks,
    finite,
    is_moments,
    mapped,
    moments,
    shaped,
    some_finite,
    updated,
    whole,
)

STRATEGIES = ("mean", "median", "most_frequent", "constant")


class Imputation(NamedTuple):
    """x with values in place of NaN, from `impute`.

    - `values`: of each column, arrays that meet x's last axis.
    - `indicated`: the columns whose missing values are marked in columns of their own, int32; None
      without indicators.
    """

    values: Tree
    indicated: Tree | None

    def __call__(self, x: Tree) -> Tree:
        def filled(xp, x, values):
            return xp.where(xp.isnan(x), values, x)

        y = apply("impute", filled, x, self.values)
        if self.indicated is None:
            return y
        return each_leaf("impute", _with_indicators, x, y, self.indicated)


def _with_indicators(x: Any, y: Any, indicated: Any) -> Any:
    xp: Any = np if isinstance(y, np.ndarray) else jnp
    missing = xp.take(xp.isnan(xp.asarray(x)), xp.asarray(indicated), axis=-1)  # [..., m]
    return xp.concatenate([y, missing.astype(y.dtype)], axis=-1)  # [..., C + m]


@errors.named
def impute(
    x: Tree | Iterator[Tree],
    strategy: str = "mean",
    *,
    value: float | None = None,
    indicator: bool = False,
) -> Imputation:
    """Columns without NaN, which is replaced by a value that is fitted on data.

    - `x`: numbers [n, ..., C] with NaN where they are missing, or [n]; a tree of such arrays, each
      fitted by itself; or an iterator of batches of either, except for the median.
    - `strategy`: "mean", "median", "most_frequent" (of several, the least) of each column (of the
      last axis; of [n], of all), or "constant".
    - `value`: the constant.
    - `indicator`: whether to append a column of 0 and 1 for each column in which the fit saw
      missing values, in their order: [..., C] -> [..., C + m].

    Returns an `Imputation(values, indicated)`, a function and a plain tree like what `standardize`
    returns; it has no inverse. Integers, which are never missing, become float32. Raises
    OptionError for a wrong option, InputError for infinities and, unless for a constant, for a
    column that is always missing; otherwise as `standardize`. Equal to scikit-learn's
    SimpleImputer.

    >>> fill = impute(np.array([[1.0, 5.0], [3.0, 6.0], [np.nan, 7.0]]), indicator=True)
    >>> fill(np.array([[np.nan, 4.0], [9.0, np.nan]]))
    array([[2., 4., 1.],
           [9., 6., 0.]])
    """
    checks.choice("strategy", strategy, STRATEGIES)
    if (value is not None) != (strategy == "constant"):
        got = f"{errors.show(value)} with {strategy}"
        mend = 'pass value= with strategy="constant", and only there'
        raise errors.OptionError("a value for a constant", got, mend)
    if value is not None:
        checks.number("value", value, -np.inf, np.inf)

    if strategy == "median":
        x = whole(x, "the median")
        found = moments(x, -1)
        values = mapped(lambda m, a: _median(m, a), found, x)
    elif strategy == "most_frequent":
        found, values = _most_frequent(x)
    else:
        found = moments(x, -1)
        values = mapped(_mean if value is None else _constant(value), found)
    return Imputation(values, mapped(_indicated, found) if indicator else None)


def _mean(m: Moments) -> np.ndarray:
    some_finite(m)
    return finite("mean", m.mean)


def _constant(value: float) -> Any:
    def values(m: Moments) -> np.ndarray:
        some_finite(m._replace(count=np.ones_like(m.count)))
        return np.full(m.count.shape, value, np.float64)

    return values


def _median(m: Moments, a: np.ndarray) -> np.ndarray:
    some_finite(m)
    with np.errstate(over="ignore"):
        median = np.nanmedian(as_columns(a, -1), axis=-1)
    return shaped(finite("median", median), a, -1)


def _indicated(m: Moments) -> np.ndarray:
    if m.missing.ndim == 0:
        raise errors.OptionError(
            "columns [n, C] for indicators", "one array [n]", "pass x[:, None], or no indicator"
        )
    return np.flatnonzero(m.missing).astype(np.int32)


def _most_frequent(x: Tree | Iterator[Tree]) -> tuple[Tree, Tree]:
    """(the moments of each leaf, its most frequent values), in one pass."""
    found, counts = None, None
    for rows in chunks(x):
        found = updated(found, rows, -1)
        new = [_counts(as_columns(a, -1)) for a in jax.tree.leaves(rows)]
        counts = new if counts is None else list(map(_added, counts, new))
    mapped(some_finite, found)
    stats, treedef = jax.tree.flatten(found, is_leaf=is_moments)
    modes = [[values[of.argmax()] for values, of in columns] for columns in counts or ()]
    shaped_as = [np.reshape(mode, m.count.shape) for mode, m in zip(modes, stats, strict=True)]
    return found, jax.tree.unflatten(treedef, shaped_as)


def _counts(columns: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(distinct values in order, how often each occurs) of each column: [C, values] or [values]."""
    return [np.unique(c[~np.isnan(c)], return_counts=True) for c in np.atleast_2d(columns)]


def _added(some: list, more: list) -> list:
    """The counts of both."""

    def one(a, b):
        values, at = np.unique(np.concatenate([a[0], b[0]]), return_inverse=True)
        return values, np.bincount(at, np.concatenate([a[1], b[1]]), len(values))

    return [one(a, b) for a, b in zip(some, more, strict=True)]
