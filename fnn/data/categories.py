"""Categories as numbers: codes for embeddings, and one-hot vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import errors
from fnn.core.dtypes import is_floating, widened
from fnn.core.shapes import from_numpy
from fnn.core.types import Tree
from fnn.data.fitted import by_numpy, check_array, each_leaf
from fnn.data.statistics import mapped, streamed


class Encoding(NamedTuple):
    """Categories as codes 0 ... K - 1, from `encode`.

    - `classes`: in order, ints or bools [K]; strings as their code points, int32 [K, L], filled up
      with -1, so that they can be saved as an array.
    """

    classes: Tree

    @property
    def size(self) -> Any:
        """K, the number of categories; of a tree, a tree of them."""
        return jax.tree.map(lambda classes: classes.shape[0], self.classes)

    def __call__(self, x: Tree) -> Tree:
        return each_leaf("encode", _encoded, x, self.classes)

    def inverse(self, codes: Tree) -> Tree:
        """The categories of codes, on the host; K gives None for strings, an error for numbers."""
        return each_leaf("encode", _decoded, codes, self.classes)


@errors.named
def encode(x: Tree | Iterator[Tree]) -> Encoding:
    """Categories as int32 codes 0 ... K - 1, in their order; K for unseen and missing ones.

    - `x`: ints, bools or strings [n], as NumPy's arrays of numbers, strings or objects; missing are
      None, NaN and pandas' NA, and floats are ints with NaN. Or a tree of such arrays, such as a
      dict of columns, each fitted by itself; or an iterator of batches of either.

    Returns an `Encoding(classes)`, a function of arrays of any shape and a plain tree. Its `size`
    is K: an embedding takes `fnn.embedding(enc.size + 1, features)`. Ints and bools are encoded
    inside `jit` as well, strings on the host alone, before batches are made. `enc.inverse(codes)`
    gives the categories, on the host.

    Raises DtypeError for anything else, such as mixed kinds, or floats that are not whole;
    InputError if there is no category, and for several splits in one dict; ShapeError for an x that
    is not [n]. When called, DtypeError for strings where numbers were fitted, or the reverse.

    >>> enc = encode(np.array(["dog", "cat", None, "dog"], object))
    >>> enc.size, enc(np.array(["cat", "dog", "cow", None], object))
    (2, array([0, 1, 2, 2], dtype=int32))
    >>> enc.inverse(np.array([1, 0, 2]))
    array(['dog', 'cat', None], dtype=object)
    """
    return Encoding(_classes(x, flat=True))


class OneHot(NamedTuple):
    """1 at the place of x among `classes` [K], 0 elsewhere, from `one_hot`."""

    classes: Tree

    def __call__(self, x: Tree) -> Tree:
        return each_leaf("one_hot", _one_hot, x, self.classes)

    def inverse(self, y: Tree) -> Tree:
        """The class with the largest value: [..., K] -> [...]."""
        return each_leaf("one_hot", _largest, y, self.classes)


@errors.named
def one_hot(x: Tree | Iterator[Tree]) -> OneHot:
    """Integers as one-hot vectors over the values in data: [...] -> float32 [..., K].

    What the fit did not see, such as the code of unseen categories, becomes zeros.

    - `x`: ints or bools [n, ...], a tree of such arrays, each fitted by itself, or an iterator of
      batches of either. Strings are encoded first.

    Returns a `OneHot(classes)`, a function, also inside `jit`, and a plain tree. Its `inverse`
    takes the class with the largest value, so that it reads predictions too. Raises DtypeError for
    other kinds, InputError for several splits in one dict, ShapeError without examples.

    >>> hot = one_hot(np.array([3, 5, 3, 9]))
    >>> hot(np.array([5, 4]))
    array([[0., 1., 0.],
           [0., 0., 0.]], dtype=float32)
    >>> hot.inverse(np.array([0.1, 0.2, 0.7]))
    array(9, dtype=int32)
    """
    return OneHot(_classes(x, flat=False))


# --- the categories in data


def _classes(x: Tree | Iterator[Tree], flat: bool) -> Tree:
    """The classes of each leaf, in order; `flat` data is [n], and may be strings."""
    found = None
    for batch in streamed(x):
        new = mapped(lambda a: _distinct(a, flat), batch)
        found = new if found is None else mapped(_union, found, new)
    return mapped(_stored, found)


def _distinct(a: np.ndarray, flat: bool) -> np.ndarray:
    """The distinct categories of an array, in order: ints, bools or an object array of strings."""
    if flat and a.ndim != 1:
        mend = "encode each column by itself, as a dict of columns"
        raise errors.ShapeError("x [n]", f"x {a.shape}", mend)
    if a.dtype.kind in "OUT" and flat:
        present = [v for v in _listed(a) if not is_missing(v)]
        kinds = _kinds(present)  # of all, before equal ones are joined, such as 1, 1.0 and True
        if len(kinds) > 1 or kinds - {str, bool, int}:
            _refuse_kinds("strings, ints or bools, of one kind", kinds, _MEND)
        if kinds <= {str}:
            return np.array(sorted(set(present)), object)
        return _sorted(np.array([*set(present)], bool if kinds == {bool} else object))
    if flat and is_floating(a):
        values = a.astype(np.float64)
        values = values[~np.isnan(values)]
        if not (np.abs(values) < 2.0**53).all() or (values != np.floor(values)).any():
            raise errors.DtypeError("categories", f"floats {errors.show(a)} not all whole", _MEND)
        return np.unique(values).astype(np.int64)
    if a.dtype.kind not in "biu":
        raise errors.DtypeError(
            "strings, ints or bools" if flat else "ints or bools",
            f"x {errors.show(a)}",
            _MEND if flat else "make codes of categories first, by fnn.data.encode",
        )
    return _sorted(a)


def _sorted(a: np.ndarray) -> np.ndarray:
    """The distinct values of bools or ints, in order: bool or int64."""
    values = np.unique(a)
    if values.dtype == bool:
        return values
    low, high = int(values[0]), int(values[-1])
    if low < -(2**63) or high >= 2**63:
        raise errors.InputError("ints that int64 holds", f"{low} ... {high}", "number them anew")
    return values.astype(np.int64)


_MEND = "make strings of them, as x.astype(str), or bins of numbers, by np.digitize"


def _listed(a: np.ndarray) -> list:
    values = a.ravel().tolist()
    if a.dtype.kind == "O":
        for v in values:
            if getattr(type(v), "__hash__", None) is None:
                raise errors.DtypeError("categories", f"a {type(v).__name__} in x", _MEND)
    return values


def is_missing(v: Any) -> bool:
    """Whether a value of an object array stands for none: None, NaN, pandas' NA."""
    nan = isinstance(v, (float, np.floating)) and v != v
    return v is None or nan or type(v).__name__ in ("NAType", "NaTType")


_KINDS = {str: str, bool: bool, np.bool_: bool, int: int, np.integer: int}


def _kinds(values: list) -> set[type]:
    types = set(map(type, values))
    return {next((_KINDS[k] for k in _KINDS if issubclass(t, k)), t) for t in types}


def _refuse_kinds(wanted: str, kinds: set[type], mend: str) -> None:
    got = f"x of {errors.names(sorted(kind.__name__ for kind in kinds))}"
    raise errors.DtypeError(wanted, got, mend)


def _union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The categories of two batches, one of which may have none."""
    if not (len(a) and len(b)):
        return a if len(a) else b
    if a.dtype.kind in "Ob" or b.dtype.kind in "Ob":
        if a.dtype.kind != b.dtype.kind:
            got = f"{errors.show(a)} and {errors.show(b)}"
            raise errors.DtypeError("batches of one kind", got, _MEND)
        if a.dtype.kind == "O":
            return np.array(sorted({*a.tolist(), *b.tolist()}), object)
    return np.union1d(a, b)


def _stored(classes: np.ndarray) -> np.ndarray:
    """Classes as an array of numbers that can be saved."""
    if not len(classes):
        raise errors.InputError("at least one category", "none that is not missing", "leave x out")
    if classes.dtype.kind == "O":
        points = np.full((len(classes), max(map(len, [*classes, " "]))), -1, np.int32)
        for row, text in zip(points, classes, strict=True):
            row[: len(text)] = [ord(c) for c in text]
        return points
    if classes.dtype.kind == "b":
        return classes
    narrow = classes.astype(np.int32)
    return narrow if (narrow == classes).all() else classes


# --- codes


def _encoded(x: Any, classes: Any) -> Any:
    """The code of each element."""
    check_array(x)
    if classes.ndim == 2:
        if not by_numpy(x, classes):
            mend = "encode on the host, before jit"
            raise errors.InputError("strings in an array of NumPy", f"x {errors.show(x)}", mend)
        return _looked_up(x, _strings(classes), "strings")
    if by_numpy(x, classes) and np.asarray(x).dtype.kind in "OUT":
        return _looked_up(x, np.asarray(classes).tolist(), "numbers")
    return _searched(x, classes)


def _looked_up(x: Any, classes: list, kind: str) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype.kind not in ("OUT" if kind == "strings" else "O"):
        raise errors.DtypeError(f"{kind}, as in the fit", f"x {errors.show(x)}", "fit anew")
    codes = {c: i for i, c in enumerate(classes)}
    values = _listed(x)
    kinds = _kinds([v for v in values if not is_missing(v)])
    if (kinds - {str}) if kind == "strings" else (str in kinds):
        _refuse_kinds(f"{kind}, as in the fit", kinds, "fit anew")
    found = [codes.get(v, len(classes)) for v in values]
    return np.array(found, np.int32).reshape(x.shape)


def _searched(x: Any, classes: Any) -> Any:
    """By bisection, in the widest integers: int64 on the host."""
    host = by_numpy(x, classes)
    xp: Any = np if host else jnp
    dtype = np.dtype(np.int64) if host else jax.dtypes.canonicalize_dtype(np.int64)
    if np.dtype(x.dtype).kind not in "biu" and not is_floating(x):
        raise errors.DtypeError("numbers, as in the fit", f"x {errors.show(x)}", "fit anew")
    classes, x = map(np.asarray if host else from_numpy, (classes, x))
    classes, size = classes.astype(dtype), classes.shape[0]
    x, known = _as_ints(xp, x, dtype)
    at = xp.minimum(xp.searchsorted(classes, x), size - 1)
    return xp.where((classes[at] == x) & known, at, size).astype(np.int32)


def _as_ints(xp: Any, x: Any, dtype: np.dtype) -> tuple[Any, Any]:
    """(x in an integer dtype, where it is one of its values)."""
    if is_floating(x):
        x = x.astype(np.float64) if xp is np else widened(x)
        limit = 2.0 ** (8 * dtype.itemsize - 1)
        known = (x == xp.floor(x)) & (x >= -limit) & (x < limit)
    elif x.dtype.kind == "u" and x.dtype.itemsize >= dtype.itemsize:
        known = x <= x.dtype.type(np.iinfo(dtype).max)
    else:
        return x.astype(dtype), True
    return xp.where(known, x, xp.zeros_like(x)).astype(dtype), known


def _strings(points: Any) -> list[str]:
    return ["".join(map(chr, row[row >= 0].tolist())) for row in np.asarray(points)]


def _decoded(codes: Any, classes: Any) -> np.ndarray:
    """The category of each code."""
    check_array(codes)
    if not by_numpy(codes, classes) and isinstance(codes, jax.core.Tracer):
        mend = "decode outside jit, or take them from classes, which holds numbers in order"
        raise errors.InputError("codes to decode on the host", errors.show(codes), mend)
    codes, size = np.asarray(codes), classes.shape[0]
    if codes.dtype.kind not in "iu":
        raise errors.DtypeError("codes of an integer dtype", errors.show(codes), "take the argmax")
    strings = classes.ndim == 2
    wrong = [c for c in np.unique(codes).tolist() if not 0 <= c < size + strings]
    if wrong:
        mend = f"{size} stands for what has no category: choose others, as codes[codes < {size}]"
        raise errors.InputError(f"codes below {size}", f"{wrong[0]}", mend)
    table = np.array([*_strings(classes), None], object) if strings else np.asarray(classes)
    return np.asarray(np.take(table, codes), table.dtype)


def _one_hot(x: Any, classes: Any) -> Any:
    check_array(x)
    if np.dtype(x.dtype).kind not in "biu":
        mend = "make codes of categories first, by fnn.data.encode"
        raise errors.DtypeError("ints or bools", f"x {errors.show(x)}", mend)
    codes = _searched(x, classes)
    xp: Any = np if isinstance(codes, (np.ndarray, np.generic)) else jnp
    places = xp.arange(classes.shape[0], dtype=np.int32)
    return (xp.expand_dims(codes, -1) == places).astype(np.float32)


def _largest(y: Any, classes: Any) -> Any:
    check_array(y)
    size = classes.shape[0]
    if y.ndim == 0 or y.shape[-1] != size:
        raise errors.ShapeError(
            f"y [..., {size}]", f"y {tuple(y.shape)}", "one value for each class"
        )
    if by_numpy(y, classes):
        return np.asarray(np.asarray(classes)[np.argmax(y, axis=-1)])
    return from_numpy(classes, "classes")[jnp.argmax(y, axis=-1)]
