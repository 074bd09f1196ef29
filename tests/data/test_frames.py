"""Tables of pandas as arrays: what each dtype becomes, and what is refused."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import errors
from fnn.data import encode, from_frame
from tests.support import refused

pd = pytest.importorskip("pandas")

ints = st.integers(-(2**31), 2**31 - 1)
small = st.integers(-(2**24), 2**24)
floats = st.floats(width=32)
strings = st.text("ab \u20ac", max_size=3)


@given(
    rows=st.lists(st.tuples(ints, floats, st.booleans(), strings, small), max_size=6),
    gaps=st.lists(st.integers(0, 5), max_size=3),
)
def test_every_value_is_kept(rows, gaps):
    i, f, b, s, k = ([row[c] for row in rows] for c in range(5))
    gaps = [gap for gap in gaps if gap < len(rows)]
    frame = pd.DataFrame({
        "i": pd.Series(i, dtype="int64"), "i8": pd.Series(i, dtype="Int64"),
        "f": pd.Series(f, dtype="float64"), "f32": pd.Series(f, dtype="Float32"),
        "b": pd.Series(b, dtype="bool"), "b8": pd.Series(b, dtype="boolean"),
        "s": pd.Series(s, dtype="object"), "str": pd.Series(s, dtype="string"),
        "cat": pd.Series(s, dtype="category"), "cats": pd.Series(k, dtype="category"),
    })  # fmt: skip
    found = from_frame(frame)
    assert list(found) == list(frame.columns)
    for name, dtype, values in (
        ("i", "int32", i), ("i8", "int32", i), ("f", "float32", f), ("f32", "float32", f),
        ("b", "bool", b), ("b8", "bool", b), ("s", "object", s), ("str", "object", s),
        ("cat", "object", s), ("cats", "int32", k),
    ):  # fmt: skip
        if rows or name[:3] != "cat":  # without rows, categories have no kind
            assert type(found[name]) is np.ndarray and found[name].dtype == dtype, name
        np.testing.assert_array_equal(found[name], np.array(values, found[name].dtype))

    gappy = pd.DataFrame({"k": pd.Series(k, dtype="Int64"), "b": frame["b8"], "cats": frame["cats"],
                          "s": frame["s"], "str": frame["str"], "cat": frame["cat"]})  # fmt: skip
    gappy.loc[gaps] = pd.NA
    if gaps:
        found = from_frame(gappy)
        for name, values in (("k", k), ("b", b), ("cats", k)):
            want = [np.nan if j in gaps else v for j, v in enumerate(values)]
            assert found[name].dtype == np.float32
            np.testing.assert_array_equal(found[name], want)
        for name in ("s", "str", "cat"):
            assert found[name].tolist() == [None if j in gaps else v for j, v in enumerate(s)]
            if set(s) - {v for j, v in enumerate(s) if j in gaps}:
                assert encode(found[name]).size >= 1


def test_columns_are_chosen_and_stacked():
    frame = pd.DataFrame(
        {"age": [1, 2], "fare": [0.5, None], "alone": [True, False], "sex": ["m", "f"]},
        index=[7, 5],
    )
    columns = {"x": ["fare", "age", "alone"], "one": ["age"], "kind": "sex", "y": "alone"}
    found = from_frame(frame, columns)
    assert list(found) == list(columns)
    assert found["x"].dtype == np.float32 and found["one"].shape == (2, 1)
    np.testing.assert_array_equal(found["x"], [[0.5, 1, 1], [np.nan, 2, 0]])
    assert from_frame(frame[:0], columns)["x"].shape == (0, 3)
    frame.loc[7, "age"] = 99
    assert found["one"][0, 0] == 1  # a copy


def one(values, **options):
    return pd.DataFrame({"c": pd.Series(values, **options)})


def test_what_is_refused_names_the_column():
    dates = pd.to_datetime(["2020-01-01", "2021-01-01"])
    for frame, of, kind in (
        (one(dates), "dayofweek", errors.DtypeError),
        (one(dates - dates[0]), "total_seconds", errors.DtypeError),
        (one(dates.to_period("M")), "one kind", errors.DtypeError),
        (one(dates, dtype="category"), "one kind", errors.DtypeError),
        (one([1, "a"]), "one kind", errors.DtypeError),
        (one([True, None], dtype=object), "boolean", errors.DtypeError),
        (one([[1], [2]]), "one kind", errors.DtypeError),
        (one([1j, 2]), "one kind", errors.DtypeError),
        (one([2**31, 0]), "astype(str)", errors.InputError),
        (one([-(2**31) - 1, 0]), "astype(str)", errors.InputError),
        (one([2**63], dtype="uint64"), "astype(str)", errors.InputError),
        (one([2**24 + 1, None], dtype="Int64"), "astype(float)", errors.InputError),
        (one([1e39]), "scale", errors.InputError),
    ):
        error = refused(lambda frame=frame: from_frame(frame), kind)
        assert str(error).startswith("c: expected ") and of in error.mend
    assert refused(lambda: from_frame(one([1, "a"]))).got == "objects of int, str"
    error = refused(lambda: from_frame(one([2**24 + 1]), {"x": ["c"]}), errors.InputError)
    assert str(error).startswith("c: ")
    error = refused(lambda: from_frame(one(["a"]), {"x": ["c"]}), errors.DtypeError)
    assert "fnn.data.encode" in error.mend
    assert from_frame(one([1e39, np.inf])[1:])["c"].tolist() == [np.inf]


def test_bad_options_are_refused():
    frame = one([1, 2])
    error = refused(lambda: from_frame(frame, {"x": ["c", "d"]}), errors.OptionError)
    assert (error.expected, error.got) == ("columns among c", "x: 'd'")
    for columns in (["c"], {"x": []}, {"x": 3}, {"x": "d"}, {"x": [3]}):
        refused(lambda columns=columns: from_frame(frame, columns), errors.OptionError)
    refused(lambda: from_frame({"c": [1]}), errors.InputError)
    refused(lambda: from_frame(frame["c"]), errors.InputError)
    refused(lambda: from_frame(pd.DataFrame([[1, 2]])), errors.InputError)
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
    assert refused(lambda: from_frame(twice), errors.InputError).got == "a twice"


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"from_frame needs pandas: pip install 'fnn\[frame\]'"):
        from_frame({})
