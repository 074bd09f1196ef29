"""Scales of columns, fitted on data: standardized, from minimum to maximum, without outliers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.core import checks, errors
from fnn.core.types import Tree
from fnn.data.fitted import apply
from fnn.data.statistics import (
    Axis,
    Moments,
    as_columns,
    finite,
    mapped,
    moments,
    places,
    shaped,
    some_finite,
    whole,
)


class Standard(NamedTuple):
    """(x - mean) / std, from `standardize`; arrays, or trees of them, that meet x's last axes."""

    mean: Tree
    std: Tree

    def __call__(self, x: Tree) -> Tree:
        def formula(xp, x, mean, std):
            return (x - mean) / _not_zero(xp, std)

        return apply("standardize", formula, x, self.mean, self.std)

    def inverse(self, y: Tree) -> Tree:
        def formula(xp, y, mean, std):
            return y * std + mean

        return apply("standardize", formula, y, self.mean, self.std)


@errors.named
def standardize(x: Tree | Iterator[Tree], *, axis: Axis = -1) -> Standard:
    """Columns of mean 0 and standard deviation 1, fitted on data.

        y = (x - mean) / std

    - `x`: numbers [n, ...], a tree of such arrays, each fitted by itself, or an iterator of
      batches of either. NaN counts for nothing.
    - `axis`: the axes that keep their own statistics: by default the last, of columns or channels,
      (of [n], one number); None for one number of all values. Never 0, that of the examples.

    Returns a `Standard(mean, std)` in float64, which is a function, has an `inverse`, and is a
    plain tree: it goes through `jit` as an argument, and is saved with the params. It takes any
    leading axes. On NumPy's arrays it computes in float64, on JAX's in float32 at least; the result
    has x's dtype, or float32 for integers. NaN stays NaN. The deviation is that of the population
    (ddof 0), and 1 in columns of one value, which become 0.

    Raises InputError for infinities, for columns of NaN alone, and for several splits in one dict;
    DtypeError for what is not a number; ShapeError without examples; when called, ShapeError for
    other columns than those of the fit. Streams are merged by Chan, Golub & LeVeque (1979).

    >>> norm = standardize(np.array([[1.0, 10.0], [3.0, 10.0]]))
    >>> norm(np.array([[2.0, 11.0], [5.0, np.nan]]))
    array([[ 0.,  1.],
           [ 3., nan]])
    >>> norm.inverse(np.zeros((1, 2))), norm.std
    (array([[ 2., 10.]]), array([1., 1.]))
    """

    def std(m: Moments) -> np.ndarray:
        some_finite(m)
        deviation = finite("variance", np.sqrt(m.m2 / m.count))
        # Of equal values rounding may leave a little, and squares of tiny deviations nothing.
        return np.where((m.low == m.high) | (deviation == 0), 1.0, deviation)

    found = moments(x, axis)
    stds = mapped(std, found)
    return Standard(mapped(lambda m: np.where(m.low == m.high, m.low, m.mean), found), stds)


class MinMax(NamedTuple):
    """low + (high - low) (x - minimum) / span, from `minmax`."""

    minimum: Tree
    span: Tree
    low: Any
    high: Any

    def __call__(self, x: Tree) -> Tree:
        def formula(xp, x, minimum, span, low, high):
            return low + (x - minimum) / _not_zero(xp, span) * (high - low)

        return apply("minmax", formula, x, *self._stats())

    def inverse(self, y: Tree) -> Tree:
        def formula(xp, y, minimum, span, low, high):
            return (y - low) / (high - low) * span + minimum

        return apply("minmax", formula, y, *self._stats())

    def _stats(self) -> tuple:
        ends = (jax.tree.map(lambda _, end=end: end, self.span) for end in (self.low, self.high))
        return self.minimum, self.span, *ends


@errors.named
def minmax(
    x: Tree | Iterator[Tree], low: float = 0.0, high: float = 1.0, *, axis: Axis = -1
) -> MinMax:
    """Columns from `low` to `high`, fitted on data.

        y = low + (high - low) (x - min) / (max - min)

    Values outside those of the fit leave the range: nothing is clamped. Columns of one value
    become `low`.

    - `x`, `axis`: as for `standardize`; an iterator of batches too.
    - `low`, `high`: where the least and the largest value of each column go.

    Returns a `MinMax(minimum, span, low, high)`, used like what `standardize` returns. Raises as
    `standardize`, and OptionError unless low < high.

    >>> scale = minmax(np.array([[1.0, 5.0], [3.0, 5.0]]), -1, 1)
    >>> scale(np.array([[2.0, 5.0], [4.0, 5.0]]))
    array([[ 0., -1.],
           [ 2., -1.]])
    """
    checks.number("low", low, -np.inf, np.inf)
    checks.number("high", high, -np.inf, np.inf)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise errors.OptionError("low < high, both finite", f"{low} and {high}", "swap them")

    def span(m: Moments) -> np.ndarray:
        some_finite(m)
        with np.errstate(over="ignore"):
            return np.where(m.low == m.high, 1.0, finite("range", m.high - m.low))

    found = moments(x, axis)
    spans = mapped(span, found)
    return MinMax(
        mapped(lambda m: m.low, found), spans, np.asarray(float(low)), np.asarray(float(high))
    )


class Limits(NamedTuple):
    """min(max(x, low), high), from `clip_outliers`."""

    low: Tree
    high: Tree

    def __call__(self, x: Tree) -> Tree:
        def formula(xp, x, low, high):
            return xp.clip(x, low, high)

        return apply("clip_outliers", formula, x, self.low, self.high)


@errors.named
def clip_outliers(
    x: Tree,
    whiskers: float | None = None,
    quantiles: tuple[float, float] | None = None,
    *,
    axis: Axis = -1,
) -> Limits:
    """Columns without outliers, which are set to limits that are fitted on data.

        low, high = Q1 - k (Q3 - Q1), Q3 + k (Q3 - Q1)

    - `x`, `axis`: as for `standardize`, but no iterator: quantiles need all values at once. NaN
      counts for nothing, and stays. Infinities are values like any others.
    - `whiskers`: k, from 0; by default 1.5 (Tukey, Exploratory Data Analysis, 1977).
    - `quantiles`: the limits are these quantiles instead, such as (0.01, 0.99).

    Returns a `Limits(low, high)`, a function and a plain tree like what `standardize` returns; it
    has no inverse. Raises as `standardize`; OptionError for options out of range, and for a column
    of several values whose quartiles are equal, which whiskers would make constant.

    >>> clip = clip_outliers(np.array([1.0, 2.0, 3.0, 4.0, 100.0]))
    >>> clip.low, clip.high, clip(np.array([2.0, 100.0, -5.0]))
    (array(-1.), array(7.), array([ 2.,  7., -1.]))
    """
    if whiskers is not None and quantiles is not None:
        raise errors.OptionError("whiskers or quantiles", "both", "pass one of them")
    if quantiles is not None:
        if not (isinstance(quantiles, (tuple, list)) and len(quantiles) == 2):
            mend = "pass two, as (0.01, 0.99)"
            raise errors.OptionError("quantiles (low, high)", errors.show(quantiles), mend)
        for value in quantiles:
            checks.number("quantiles", value, 0.0, 1.0)
        if not quantiles[0] < quantiles[1]:
            raise errors.OptionError("low < high", errors.show(quantiles), "swap them")
    k = 1.5 if whiskers is None else whiskers
    checks.number("whiskers", k, 0.0, np.inf, open_high=True)

    data = whole(x, "quantiles")

    def limits(m: Moments, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        some_finite(m._replace(infinite=np.zeros_like(m.infinite)))
        with np.errstate(invalid="ignore"):  # between infinities
            low, high = (
                shaped(np.nanquantile(as_columns(a, axis), q, axis=-1), a, axis)
                for q in quantiles or (0.25, 0.75)
            )
            if quantiles is None:
                _refuse_equal(low, high, m)
                low, high = low - k * (high - low), high + k * (high - low)
        return finite("limits", low), finite("limits", high)

    found = mapped(limits, moments(data, axis), data)
    both = jax.tree.transpose(jax.tree.structure(data), jax.tree.structure((0, 0)), found)
    return Limits(*both)


def _refuse_equal(low: np.ndarray, high: np.ndarray, m: Moments) -> None:
    lost = (low == high) & ((m.low < m.high) | (m.infinite > 0))
    if lost.any():
        raise errors.OptionError(
            "columns whose quartiles differ",
            f"equal ones{places(lost)}",
            "whiskers would make it constant: pass quantiles=, or leave it out",
        )


def _not_zero(xp: Any, scale: Any) -> Any:
    """A scale that was positive in float64, also where float32 has nothing but 0 for it."""
    return xp.maximum(scale, xp.finfo(scale.dtype).tiny)
