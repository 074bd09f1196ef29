"""What is in a tree of arrays, leaf by leaf: for reading, in a notebook or as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.analysis import marks
from fnn.analysis.units import of_bytes
from fnn.core import checks, errors, html
from fnn.core.declarations import Derived, Param, declared
from fnn.core.dtypes import is_key
from fnn.core.types import Tree

BINS = 20
_BLOCK = 2**22  # values that are made float64 at once


class Leaf(NamedTuple):
    """One leaf of an overview; what is not known is None.

    - `path`: the names that lead to it. `shape`, `dtype`: as text for what is no array.
    - `count`, `nbytes`: of the whole array, on however many devices it is.
    - `note`: of what kind it is, or why there are no values.
    - `norm`, `mean`, `std`, `low`, `high`: of the values that are finite. `nans`, `infs`: how many
      are not. `histogram`: counts of `BINS` equal bins from `low` to `high`.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...] | None
    dtype: str
    count: int = 0
    nbytes: int = 0
    note: str = ""
    norm: float | None = None
    mean: float | complex | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    nans: int = 0
    infs: int = 0
    histogram: tuple[int, ...] = ()

    @property
    def wrong(self) -> str:
        parts = [f"{n:,} {name}" for n, name in ((self.nans, "NaN"), (self.infs, "inf")) if n]
        return ", ".join(parts)

    @property
    def is_array(self) -> bool:
        return self.shape is not None


@dataclass(frozen=True, repr=False)
class Overview:
    """The leaves of a tree; its representation shows at most `limit` of them and counts the rest.

    Leaves with values that are not finite come before others where there are too many to show.
    """

    leaves: tuple[Leaf, ...]
    limit: int = 200

    @property
    def count(self) -> int:
        return sum(leaf.count for leaf in self.leaves)

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves)

    @property
    def wrong(self) -> tuple[Leaf, ...]:
        """The leaves with values that are not finite."""
        return tuple(leaf for leaf in self.leaves if leaf.wrong)

    def shown(self) -> set[int]:
        """The places of the leaves that are shown."""
        order = sorted(range(len(self.leaves)), key=lambda i: (not self.leaves[i].wrong, i))
        return set(order[: self.limit])

    def __repr__(self) -> str:
        shown = self.shown()
        rows: list[tuple[str, ...]] = [("path", "shape", "dtype", "norm", "mean", "std", "", "")]
        for i in sorted(shown):
            leaf = self.leaves[i]
            shape, *numbers = _cells(leaf)
            notes = ", ".join(filter(None, [leaf.wrong, leaf.note]))
            path = "/".join(leaf.path) or "(the tree)"
            rows.append((path, shape, leaf.dtype, *numbers, marks.bars(leaf.histogram), notes))
        lines = marks.columns(rows)
        left = len(self.leaves) - len(shown)
        lines += [f"… and {left:,} more leaves"] if left else []
        return "\n".join([*(lines if self.leaves else []), self._total()])

    def _total(self) -> str:
        n = len(self.leaves)
        total = (
            f"{n:,} lea{'f' if n == 1 else 'ves'}, {self.count:,} values, {of_bytes(self.nbytes)}"
        )
        wrong = len(self.wrong)
        return total + (f", {wrong:,} with values that are not finite" if wrong else "")

    def _repr_html_(self) -> str:
        shown = self.shown()
        if not self.leaves:
            return html.page(html.faint(self._total()))
        return html.page(self._part(html.bold("tree"), range(len(self.leaves)), 0, shown))

    def _part(self, head: str, places: Sequence[int], depth: int, shown: set[int]) -> str:
        """The leaves below one path, folded, with those right there in a table."""
        own = [i for i in places if len(self.leaves[i].path) <= depth + 1]
        below: dict[str, list[int]] = {}
        for i in sorted(set(places) - set(own)):
            below.setdefault(self.leaves[i].path[depth], []).append(i)
        if len(below) == 1 and not own and depth:  # one name leads on
            ((name, _),) = below.items()
            return self._part(f"{head}/{html.bold(name)}", places, depth + 1, shown)
        part = Overview(tuple(self.leaves[i] for i in places))
        wrong = f"{_leaves(len(part.wrong))} not finite" if part.wrong else ""
        head += " " + html.faint(f"{part.count:,} values, {of_bytes(part.nbytes)}")
        head += f" {html.warning(wrong)}" if wrong else ""
        rows = [self._row(self.leaves[i]) for i in own if i in shown]
        inside, left = [html.table((), rows)] if rows else [], len(own) - len(rows)
        for name, some in below.items():
            if shown.isdisjoint(some):
                left += len(some)
            else:
                inside.append(self._part(html.bold(name), some, depth + 1, shown))
        inside += [html.line(html.faint(f"… and {left:,} more leaves"))] if left else []
        is_open = depth < 1 or len(self.leaves) <= 40 or bool(part.wrong)
        return html.folded(head, inside, is_open)

    def _row(self, leaf: Leaf) -> list[str]:
        shape, norm, mean, std = _cells(leaf)
        picture = ""
        if leaf.histogram:
            title = f"from {leaf.low:.4g} to {leaf.high:.4g}"
            picture = marks.histogram(leaf.histogram, title)
        notes = [html.warning(leaf.wrong) if leaf.wrong else "", html.text(leaf.note)]
        name = html.bold(leaf.path[-1]) if leaf.path else ""
        numbers = ("", "")
        if norm:
            numbers = f"{html.faint('norm')} {norm}", f"{html.faint('mean')} {mean} ± {std}"
        cells = (html.text(shape), html.text(leaf.dtype), *numbers)
        return [name, *cells, picture, " ".join(filter(None, notes))]


@errors.named
def overview(tree: Tree, *, limit: int = 200) -> Overview:
    """What is in a tree, leaf by leaf: shape, dtype, bytes, norm, mean, deviation and a histogram.

    - `tree`: params, state, gradients, a training state: any tree of arrays. Declarations
      (`net.specs(x)`) and ShapeDtypeStructs have shapes alone.
    - `limit`: how many leaves are shown, of those with NaN or inf first; the rest is counted.

    In a notebook the result is a tree that folds, with NaN and inf in red; printed, it is a table.
    The norm is the root of the sum of squares, the mean and the deviation are those of the finite
    values, in float64; of leaves that are not shown, only NaN and inf are counted. Each leaf is
    brought to the host, one after the other; of one that is spread over several processes there is
    no more than its shape.

    >>> import fnn
    >>> params = {"dense1": {"kernel": jnp.array([[3.0, -3.0]]), "bias": jnp.array([jnp.nan, 1.0])}}
    >>> found = fnn.analysis.overview(params)
    >>> found.count, [(leaf.path[-1], leaf.wrong) for leaf in found.wrong]
    (4, [('bias', '1 NaN')])
    """
    limit = checks.count("limit", limit, 0)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if any(isinstance(leaf, Derived) for _, leaf in leaves):
        leaves = jax.tree_util.tree_leaves_with_path(declared(tree))
    some = [(tuple(errors.path_of((key,)) for key in keys), leaf) for keys, leaf in leaves]
    found = [_leaf(*each, len(some) <= limit) for each in some]
    if len(some) > limit:
        for i in Overview(tuple(found), limit).shown():
            found[i] = _leaf(*some[i], True)
    return Overview(tuple(found), limit)


def _leaf(path: tuple[str, ...], leaf: Any, in_full: bool) -> Leaf:
    if isinstance(leaf, Param):
        shape, dtype = leaf.stack + leaf.shape, jnp.dtype(leaf.dtype)
        count = math.prod(shape)
        return Leaf(path, shape, dtype.name, count, count * dtype.itemsize, leaf.kind)
    if isinstance(leaf, (bool, int, float, complex)):
        leaf = np.asarray(leaf)
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return Leaf(path, None, type(leaf).__name__)
    shape, count = tuple(leaf.shape), math.prod(leaf.shape)
    if is_key(leaf):
        return Leaf(path, shape, str(leaf.dtype), count, count * leaf.dtype.itemsize, "random key")
    found = Leaf(path, shape, str(leaf.dtype), count, count * np.dtype(leaf.dtype).itemsize)
    if isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct)):
        return found._replace(note="no values")
    if isinstance(leaf, jax.Array):
        if leaf.is_deleted():
            return found._replace(note="donated")
        if not leaf.is_fully_addressable:
            return found._replace(note="in several processes")
        n = len(leaf.sharding.device_set)
        found = found._replace(note=f"on {n} devices" if n > 1 else "")
    values = np.asarray(leaf)
    if values.dtype.kind not in "biufc" and not jnp.issubdtype(values.dtype, jnp.number):
        return found
    return _with_values(found, values.reshape(-1), in_full)


def _with_values(leaf: Leaf, values: np.ndarray, in_full: bool) -> Leaf:
    """The statistics of a leaf; range and histogram of complex values are of their sizes.

    All is computed in units of the largest value, whose square may be more than a float holds.
    """
    low, high, good, nans = math.inf, -math.inf, 0, 0
    for part, finite in _parts(values):
        nans += int(np.isnan(part).sum())
        good += finite.size
        shown = np.abs(finite) if np.iscomplexobj(finite) else finite
        low, high = min(low, shown.min(initial=low)), max(high, shown.max(initial=high))
    leaf = leaf._replace(nans=nans, infs=values.size - good - nans)
    if not good or not in_full:
        return leaf
    unit = float(max(abs(low), abs(high))) or 1.0
    total = sum((finite / unit).sum() for _, finite in _parts(values)) / good
    squares, spread, counts = 0.0, 0.0, np.zeros(BINS, np.int64)
    for _, finite in _parts(values):
        squares += float(np.square(np.abs(finite / unit)).sum())
        spread += float(np.square(np.abs(finite / unit - total)).sum())
        shown = np.abs(finite) if np.iscomplexobj(finite) else finite
        counts += np.histogram(shown / unit, BINS, _range(low / unit, high / unit))[0]
    mean = complex(total * unit) if np.iscomplexobj(total) else float(total * unit)
    found = {"norm": math.sqrt(squares) * unit, "std": math.sqrt(spread / good) * unit}
    ends = {"low": float(low), "high": float(high)}
    return leaf._replace(mean=mean, **found, **ends, histogram=tuple(counts.tolist()))


def _parts(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The values in float64, or in complex128, block by block, and the finite ones of them."""
    wide = np.complex128 if values.dtype.kind == "c" else np.float64
    for i in range(0, values.size, _BLOCK):
        part = values[i : i + _BLOCK].astype(wide)
        yield part, part[np.isfinite(part)]


def _range(low: float, high: float) -> tuple[float, float]:
    """The ends of a histogram: of values that hardly differ, wider than they are."""
    return (low, high) if high - low > 1e-9 else (low - 0.5, high + 0.5)


def _leaves(n: int) -> str:
    return f"{n:,} {'leaf' if n == 1 else 'leaves'}"


def _cells(leaf: Leaf) -> tuple[str, str, str, str]:
    def number(value: float | complex | None) -> str:
        return "" if value is None else f"{value:.4g}"

    shape = str(leaf.shape) if leaf.is_array else ""
    return shape, number(leaf.norm), number(leaf.mean), number(leaf.std)
