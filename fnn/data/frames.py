"""Tables of pandas as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fnn.core import errors

_LARGEST = 2**24  # up to which float32 holds every integer
_NULLABLE = {"b": "boolean", "i": "Int64", "u": "UInt64", "f": "float64"}  # of categories


@errors.named
def from_frame(
    frame: Any, columns: Mapping[str, str | Sequence[str]] | None = None
) -> dict[str, np.ndarray]:
    """The columns of a pandas data frame, as a plain dict of NumPy arrays.

    Reading and cleaning are pandas' own. The index is left out: `frame.reset_index()` makes it a
    column.

    - `frame`: a `pandas.DataFrame`.
    - `columns`: what the result holds, by name: one column's name gives [n], a list of them float32
      [n, len], of numbers and bools alone. None takes every column, by its own name.

    One column becomes float32 if it has floats, int32 if ints, bool if bools; ints and bools with
    missing values become float32 with NaN; strings and categories of strings become an array of
    objects, str or None.

    Raises InputError for what is no data frame, or integers that their dtype cannot hold;
    OptionError for an unknown column; DtypeError for dates and mixed objects. All name the column.
    It needs pandas, the extra `frame`.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"age": [22, 38], "fare": [7.25, 71.5], "sex": ["male", None]})
    >>> from_frame(frame, {"x": ["age", "fare"], "sex": "sex"})
    {'x': array([[22.  ,  7.25],
           [38.  , 71.5 ]], dtype=float32), 'sex': array(['male', None], dtype=object)}
    """
    pd = pandas("fnn.data.from_frame")
    if not isinstance(frame, pd.DataFrame):
        raise errors.InputError("a pandas.DataFrame", errors.show(frame), "make one of it")
    names = check_names(frame.columns)
    if columns is None:
        columns = {name: name for name in names}
    if not isinstance(columns, Mapping):
        mend = 'pass {"x": ["age", "fare"], "y": "survived"}'
        raise errors.OptionError("columns by name", errors.show(columns), mend)
    found: dict[str, np.ndarray] = {}
    for name, wanted in columns.items():
        one = isinstance(wanted, str)
        several = [wanted] if one else list(wanted) if isinstance(wanted, (list, tuple)) else []
        if not several or not all(column in names for column in several):
            unknown = [column for column in several if column not in names]
            got = errors.show(unknown[0] if unknown else wanted)
            mend = "name one column, or a list of them"
            raise errors.OptionError(f"columns among {errors.names(names)}", f"{name}: {got}", mend)
        arrays = [_named(pd, frame, column) for column in several]
        found[name] = arrays[0] if one else _stacked(arrays, several)
    return found


def pandas(who: str) -> Any:
    try:
        import pandas
    except ImportError:
        raise ImportError(f"{who} needs pandas: pip install 'fnn[frame]'") from None
    return pandas


def check_names(columns: Iterable[Any]) -> list[str]:
    """The names of a table's columns: strings, each once."""
    names = list(columns)
    if not all(isinstance(name, str) for name in names):
        got = repr(next(name for name in names if not isinstance(name, str)))
        mend = "rename them, as by frame.columns = [...]"
        raise errors.InputError("columns named by strings", got, mend)
    if len(set(names)) < len(names):
        got = f"{next(name for name in names if names.count(name) > 1)} twice"
        raise errors.InputError("a name for each column", got, "rename one")
    return names


def _named(pd: Any, frame: Any, column: str) -> np.ndarray:
    with errors.at(column):
        return _array(pd, column, frame[column])


def _array(pd: Any, name: str, series: Any) -> np.ndarray:
    """One column: float32, int32, bool, or objects that are str or None."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        kind = getattr(series.dtype.categories.dtype, "kind", "O")
        series = series.astype(_NULLABLE.get(kind, object))
    types, missing = pd.api.types, series.isna()
    if types.is_bool_dtype(series.dtype) or types.is_integer_dtype(series.dtype):
        return _whole(types, name, series, missing)
    if types.is_float_dtype(series.dtype):
        values = series.to_numpy(np.float64, na_value=np.nan)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        if (np.isinf(narrow) & np.isfinite(values)).any():
            got = f"{np.abs(values[np.isfinite(values)]).max():g}"
            raise errors.InputError("values that float32 holds", got, "scale them")
        return narrow
    text = types.is_string_dtype(series.dtype) or types.is_object_dtype(series.dtype)
    values = series.astype(object).to_numpy(copy=True)
    if not text or not all(isinstance(v, str) for v in values[~missing.to_numpy()]):
        _refuse(types, name, series)
    values[missing.to_numpy()] = None
    return values


def _whole(types: Any, name: str, series: Any, missing: Any) -> np.ndarray:
    """Ints and bools, which become floats if some are missing."""
    if missing.any():
        present = series[~missing].to_numpy(np.float64)
        _check_exact(np.abs(present).max(initial=0), name)
        return series.to_numpy(np.float64, na_value=np.nan).astype(np.float32)
    if types.is_bool_dtype(series.dtype):
        return series.to_numpy(np.bool_)
    values = series.to_numpy()
    if values.dtype == object:
        values = series.to_numpy(np.int64)
    range32 = np.iinfo(np.int32)
    if len(values) and not (range32.min <= values.min() and values.max() <= range32.max):
        got = f"{values.min()} ... {values.max()}"
        mend = f'make strings of what identifies, frame["{name}"].astype(str), floats of amounts'
        raise errors.InputError("values that int32 holds", got, mend)
    return values.astype(np.int32)


def _stacked(arrays: list[np.ndarray], names: list[str]) -> np.ndarray:
    """float32 [n, len], of numbers."""
    for name, a in zip(names, arrays, strict=True):
        with errors.at(name):
            if a.dtype == object:
                mend = "take it by itself, and encode it by fnn.data.encode"
                raise errors.DtypeError("numbers in a list of columns", "strings", mend)
            if a.dtype == np.int32:
                _check_exact(np.abs(a.astype(np.int64)).max(initial=0), name)
    return np.stack([a.astype(np.float32) for a in arrays], axis=1)


def _check_exact(largest: Any, name: str) -> None:
    if largest > _LARGEST:
        raise errors.InputError(
            "integers that float32 holds",
            f"{largest:.0f}",
            f'round amounts by frame["{name}"].astype(float), make strings of what identifies',
        )


def _refuse(types: Any, name: str, series: Any) -> None:
    """Refuse a column that is not of numbers, bools or strings."""
    kind, it = series.dtype, f'frame["{name}"]'
    if types.is_datetime64_any_dtype(kind):
        mend = f"make numbers of them, as {it}.dt.dayofweek or ({it} - start).dt.total_seconds()"
    elif types.is_timedelta64_dtype(kind):
        mend = f"make numbers of them, as {it}.dt.total_seconds()"
    else:
        others = '.astype(float), .astype("Int64") or .astype("boolean")'
        mend = f"make them of one kind, as {it}.astype(str), {others}"
    got = f"{kind}"
    if types.is_object_dtype(kind):
        kinds = sorted({type(v).__name__ for v in series[~series.isna()]})
        got = f"objects of {errors.names(kinds)}"
    raise errors.DtypeError("numbers, bools or strings", got, mend)
