"""Data cut into parts, at random and with each class in proportion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fnn.core import checks, errors
from fnn.core.types import Key, Tree
from fnn.data.batching import on_host, permutation
from fnn.data.categories import encode
from fnn.tree.paths import by_path


@errors.named
def split(
    data: Tree, sizes: Mapping[str, float], key: Key, by: str | np.ndarray | None = None
) -> dict[str, Tree]:
    """Data cut into parts at random: a dict of trees like data, of NumPy arrays.

        parts = data[permutation(key, 0, n)], cut where the sizes say

    A pure function of key, n, sizes and the classes. For the rows of anything else, such as a
    table, split `np.arange(n)`.

    - `data`: any tree of arrays [n, ...]; dtypes stay as they are.
    - `sizes`: of each part, by its name: shares that sum to 1, times n rounded so that the sum is n
      (largest remainders first); or numbers of examples, ints that sum to n.
    - `key`: `jax.random.key(0)`.
    - `by`: classes that each part has in proportion: the name of an array in data, as "label" or
      "a/label", or an array [n] of ints, bools or strings. Then each part has its size exactly,
      and of each class the number nearest to its share, or the next: within one. For two parts the
      numbers are those of scikit-learn's StratifiedShuffleSplit, up to its ties.

    Raises OptionError for sizes that do not sum up, for a part that would be empty, for an unknown
    name, and for a class with fewer members than parts; DtypeError for a `by` of floats;
    ShapeError for arrays whose leading axes differ; RandomKeyError for what is no key.

    >>> key, data = jax.random.key(0), {"x": np.arange(10) * 10, "y": np.arange(10) % 2}
    >>> parts = split(data, {"train": 0.8, "test": 0.2}, key, by="y")
    >>> parts["test"]
    {'x': array([30, 60]), 'y': array([1, 0])}
    """
    if any(hasattr(leaf, "iloc") for leaf in jax.tree.leaves(data)):
        mend = (
            "split np.arange(len(frame)) and use frame.iloc, or make arrays by fnn.data.from_frame"
        )
        raise errors.InputError("arrays", "a table", mend)
    data = on_host(data)
    n = checks.examples("data", data)
    totals = _totals(sizes, n)
    order = np.asarray(permutation(key, 0, n))
    if by is None:
        part = np.repeat(np.arange(len(totals)), list(totals.values()))
    else:
        classes, codes = _classes(data, by, n)
        part = _stratified(classes, codes[order], list(totals.values()))
    rows = {name: order[part == i] for i, name in enumerate(totals)}
    return {name: jax.tree.map(lambda a, at=at: a[at], data) for name, at in rows.items()}


def _totals(sizes: Any, n: int) -> dict[str, int]:
    """The number of examples of each part; they sum to n."""
    if not isinstance(sizes, Mapping) or not sizes:
        mend = 'pass {"train": 0.8, "valid": 0.1, "test": 0.1}'
        raise errors.OptionError("sizes by the name of each part", errors.show(sizes), mend)
    values = list(sizes.values())
    if all(isinstance(v, (int, np.integer)) for v in values):
        totals = [checks.count(name, v, least=0) for name, v in sizes.items()]
        if sum(totals) != n:
            mend = "let them sum to n, as with a part for the rest, or pass shares"
            raise errors.OptionError(f"sizes that sum to the {n} examples", f"{sum(totals)}", mend)
        return dict(zip(sizes, totals, strict=True))
    for name, value in sizes.items():
        checks.number(name, value, 0.0, 1.0)
    if any(isinstance(v, (int, np.integer)) for v in values):
        raise errors.OptionError("shares or numbers", f"both, {errors.show(sizes)}", "pass floats")
    shares = [float(v) for v in values]
    if abs(math.fsum(shares) - 1) > 1e-6:
        mend = "let them sum to 1; a part for the rest may have any name"
        raise errors.OptionError("shares that sum to 1", f"{math.fsum(shares):g}", mend)
    quotas = [share * n / math.fsum(shares) for share in shares]
    totals = dict(zip(sizes, _rounded(quotas, n), strict=True))
    for (name, total), share in zip(totals.items(), shares, strict=True):
        if share > 0 and total == 0:
            got = f"{share:g} of {n} for {name}, which rounds to none"
            mend = "pass numbers of examples, or fewer parts"
            raise errors.OptionError("at least one example in each part", got, mend)
    return totals


def _rounded(quotas: list[float], total: int) -> list[int]:
    """Numbers rounded so that they sum to `total`: up where the remainder is largest."""
    near = [round(q, 6) for q in quotas]  # floats are not exact, as 0.29 * 100 is not
    whole = [math.floor(q) for q in near]
    remainders = [round(q - w, 6) for q, w in zip(near, whole, strict=True)]
    first = sorted(range(len(near)), key=lambda i: -remainders[i])  # stable: ties in order
    for i in first[: total - sum(whole)]:
        whole[i] += 1
    return whole


def _classes(data: Tree, by: str | Any, n: int) -> tuple[list, np.ndarray]:
    """(the classes, the number of each example's class [n])."""
    labels = by
    if isinstance(by, str):
        leaves = by_path(data)
        if by not in leaves:
            got = f"{by!r} with {errors.names(filter(None, leaves))}"
            raise errors.OptionError("the name of an array in data", got, "or pass an array [n]")
        labels = leaves[by]
    labels = on_host(labels)
    if getattr(labels, "shape", None) != (n,):
        mend = "pass one class for each example"
        got = errors.show(labels) if hasattr(labels, "shape") else f"a {type(labels).__name__}"
        raise errors.ShapeError(f"by, an array [{n}]", got, mend)
    if labels.dtype.kind not in "biuOUT":
        mend = "make classes of numbers first, as np.digitize(y, np.quantile(y, [0.25, 0.5, 0.75]))"
        raise errors.DtypeError("by of ints, bools or strings", f"by {errors.show(labels)}", mend)
    if n == 0:
        return [], np.zeros(0, np.int32)
    with errors.at("by"):
        enc = encode(labels)
        codes = enc(labels)
    if (codes == enc.size).any():
        got = f"{(codes == enc.size).sum():,} missing"
        raise errors.InputError("a class for each example", got, "fill them, as by a class None")
    return enc.inverse(np.arange(enc.size)).tolist(), codes


def _stratified(classes: list, codes: np.ndarray, totals: list[int]) -> np.ndarray:
    """The part of each example, from its class: [n]."""
    counts = np.bincount(codes, minlength=len(classes))
    for label, count in zip(classes, counts, strict=True):
        if count < len(totals):
            mend = "join rare classes into one, leave them out, or split without by"
            got = f"{count} of class {label!r}"
            raise errors.OptionError(f"at least {len(totals)} examples of a class", got, mend)
    shares = _table(counts, np.array(totals, np.int64))  # [parts, classes]
    part = np.empty(len(codes), np.int64)
    for k, cuts in enumerate(shares.T):
        part[codes == k] = np.repeat(np.arange(len(totals)), cuts)
    return part


def _table(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """How many of each class go to each part: [parts, classes], with these sums, within one.

    Each entry is the floor of its share totals counts / n, or one more. Which get one more is a
    table of 0 and 1 with given sums. It exists, and part by part the classes that lack most take
    theirs (Gale, 1957; Ryser, 1957); among equals, those with the largest remainders.
    """
    table, rest = np.divmod(totals[:, None] * counts, max(totals.sum(), 1))
    lacking = counts - table.sum(0)
    for row, remainder, total in zip(table, rest, totals, strict=True):
        more = np.lexsort((-remainder, -lacking))[: total - row.sum()]
        row[more] += 1
        lacking[more] -= 1
    return table
