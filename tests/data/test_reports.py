"""What a report counts against pandas, and leaks against a slow reading of the rule."""

import io
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import errors
from fnn.data import report
from tests.support import refused

pd = pytest.importorskip("pandas")

numbers = st.sampled_from([0.0, 1.0, 2.5, -0.0, np.nan, np.inf, -np.inf])
ints, words = st.integers(-1, 1), st.sampled_from(["a", "b", "", None])
columns = {"float": numbers, "int": ints, "bool": st.booleans(), "text": words, "other": numbers,
           "same": ints, "texts": words}  # fmt: skip


@st.composite
def frames(draw):
    rows = draw(st.lists(st.tuples(*columns.values()), max_size=8))
    chosen = draw(st.sets(st.sampled_from(sorted(columns)), min_size=1))
    frame = pd.DataFrame(rows, columns=list(columns))
    kinds = {"int": "int64", "bool": "bool", "float": "float64", "other": "float64"}
    frame = frame.astype({**kinds, "same": "int32", "text": object, "texts": object})
    return frame[[name for name in columns if name in chosen]]


@given(frame=frames(), label=st.booleans())
def test_counts_equal_pandas(frame, label):
    """Of a frame, of its arrays, and of nullable dtypes."""
    found = report(frame, frame.columns[0] if label else None)
    assert (found.rows, found.repeated) == (len(frame), int(frame.duplicated().sum()))
    assert [c.name for c in found.columns] == list(frame.columns)
    for i, c in enumerate(found.columns):
        series = frame[c.name]
        assert c.missing == series.isna().sum() and c.distinct == series.nunique()
        assert c.share == (series.isna().mean() if len(series) else 0)
        assert c.constant == (series.nunique(dropna=False) <= 1)
        assert c.infinite == (np.isinf(series).sum() if c.name in ("float", "other") else 0)
        number = series.dtype != object
        equal = [
            b for b in frame.columns[:i]
            if (number == (frame[b].dtype != object) or not c.distinct)
            and series.isna().equals(frame[b].isna())
            and (frame[b].dropna().to_numpy() == series.dropna().to_numpy()).all()
        ]  # fmt: skip
        assert c.equal == (equal[0] if equal else None)
    arrays = report({name: frame[name].to_numpy() for name in frame}, found.label)
    assert arrays == found
    nullable = report(frame.convert_dtypes(), found.label)
    assert [c[2:] for c in nullable.columns] == [c[2:] for c in found.columns]
    assert str(found).splitlines()[-1].startswith(f"{len(frame)} row")


def slow_score(x, y, classes):
    """The rule, one row after another: x and y without repeated rows."""
    guesses = []
    for i, value in enumerate(x):
        other = [j for j in range(len(x)) if j % 2 != i % 2]
        if isinstance(value, str) or value is None:
            near = [j for j in other if x[j] == value] or other
        elif np.isnan(value):
            near = [j for j in other if np.isnan(x[j])] or other
        else:
            known = [j for j in other if not np.isnan(x[j])]
            least = min((abs(x[j] - value) for j in known), default=None)
            at = min((x[j] for j in known if abs(x[j] - value) == least), default=None)
            near = [j for j in known if x[j] == at] or other
        told = [y[j] for j in near]
        if classes:
            guesses.append(min(set(told), key=lambda v: (-told.count(v), v)))
        else:
            guesses.append(np.mean(told))
    guesses = np.array(guesses)
    if classes:
        return np.mean(guesses == y)
    return 1 - ((guesses - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()


gappy = st.sampled_from([np.nan, *map(float, range(6))])


@given(
    x=st.lists(gappy, min_size=6, max_size=20) | st.lists(words, min_size=6, max_size=20),
    seed=st.integers(0, 99),
    classes=st.booleans(),
)
def test_scores_equal_the_rule(x, seed, classes):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, len(x)) if classes else rng.integers(0, 9, len(x)) / 4 + 0.1
    table = {"x": np.array(x, object if {str, type(None)} & set(map(type, x)) else float), "y": y}
    first = ~pd.DataFrame(table).duplicated().to_numpy()
    found = report(table, "y")["x"]
    if len(set(y[first].tolist())) < 2:
        assert found.score is None
    else:
        expected = slow_score([v for v, f in zip(x, first, strict=True) if f], y[first], classes)
        np.testing.assert_allclose(found.score, expected, rtol=1e-9)


def test_leaks_are_found_and_chance_is_none():
    rng = np.random.default_rng(0)
    n = 400
    died, price = rng.integers(0, 2, n).astype(bool), rng.gamma(2, 10, n)
    boat = np.where(died, None, rng.choice(["1", "2", "3"], n))  # missing tells it too
    table = {
        "age": rng.normal(size=n), "boat": boat, "body": np.where(died, rng.random(n), np.nan),
        "ticket": np.array([f"t{i}" for i in range(n)]), "died": died, "constant": np.ones(n),
        "score": died + 0.1 * rng.random(n), "price": price, "cents": np.round(100 * price),
        "rare": np.arange(n) == 7, "order": np.arange(n) // 40, "noise": rng.integers(0, 9, n),
    }  # fmt: skip

    def leaks(label):
        return [c.name for c in report(table, label).columns if c.leak]

    assert leaks("died") == ["boat", "body", "score"]
    assert leaks("price") == ["cents"]
    assert leaks("cents") == ["price"]  # whole numbers, of too many values for classes
    assert leaks("rare") == []  # 399 of 400 are right without looking
    assert leaks("constant") == [] and report(table, "constant")["age"].score is None
    ends = np.repeat([np.inf, -np.inf, 2.0, np.nan], 100)
    found = report({"ends": ends, "row": np.arange(n), "of": np.arange(n) // 100}, "of")
    assert found["ends"].score == 1 and found["ends"].leak
    few = {name: a[:19] for name, a in table.items()}
    assert not any(c.leak for c in report(few, "died").columns)
    twice = {name: np.repeat(a, 2) for name, a in table.items()}  # no row tells of its repetition
    found = report(twice, "died")
    assert found.repeated == n and [c.name for c in found.columns if c.leak] == leaks("died")
    found = report({**table, "died": np.where(np.arange(n) < 300, died, None)}, "died")
    assert found["boat"].leak and found["died"].missing == 100  # unknown labels are left out


def test_the_text_and_richs_table(monkeypatch):
    table = {"age": np.array([1.0, np.nan, np.inf]), "sex": np.array(["m", "f", "m"])}
    table |= {"copy": table["age"], "one": np.ones(3, np.int32)}
    found = report(table, "sex")
    assert str(found).splitlines() == [
        "column  dtype      missing  infinite  distinct  score  remarks",
        "age     float64  1 (33.3%)         1         2  0.000",
        "sex     <U1                                  2         label",
        "copy    float64  1 (33.3%)         1         2  0.000  equals age",
        "one     int32                                1  0.000  constant",
        "3 rows",
    ]
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=100)
    console.print(found)
    console.print(report({"x[b]": np.array(["2020"], "M8[s]")}))
    text = console.file.getvalue()
    for part in ("equals age", "3 rows", "━", "x[b]", "datetime64[s]"):
        assert part in text
    monkeypatch.setitem(sys.modules, "rich.table", None)
    with pytest.raises(ImportError, match=r"pip install 'fnn\[table\]'"):
        found.table()
    assert str(found)  # without rich too
    with pytest.raises(KeyError):
        found["two"]


def test_other_columns():
    """Dates, large integers, objects of numbers, categories; dtypes are the table's."""
    days = np.array(["2020-01-01", "NaT", "2020-01-01"], "M8[D]")
    frame = pd.DataFrame({"day": days, "id": [2**60, 2**60 + 1, 2**60], "kind": ["a", "b", "a"]})
    found = report(frame.astype({"kind": "category"}))
    assert [(c.missing, c.distinct) for c in found.columns] == [(1, 1), (0, 2), (0, 2)]
    assert found["kind"].dtype == "category" and found["id"].dtype == "int64"
    assert found.repeated == 1
    nullable = report(frame[["id"]].astype("Int64"))["id"]
    assert nullable == found["id"]._replace(dtype="Int64")
    gappy = report(frame["id"].astype("Int64").mask([False, False, True]).to_frame())["id"]
    assert (gappy.missing, gappy.distinct, gappy.constant) == (1, 2, False)
    assert str(report({"a": np.array([1])})).splitlines()[-1] == "1 row"
    assert report({"a": np.array([0, 1]), "b": np.array([5, np.nan])}).repeated == 0
    mixed = np.array([1, None, 2.5], object)
    assert report({"a": mixed, "b": np.array([1, np.nan, 2.5])})["b"].equal == "a"


def test_bad_tables_are_refused():
    a = np.arange(3)
    for wrong in (a, [a], {}, None, pd.DataFrame()):
        refused(lambda wrong=wrong: report(wrong), errors.InputError)
    assert refused(lambda: report({0: a}), errors.InputError).got == "0"
    error = refused(lambda: report({"a": a, "b": a[:2]}), errors.ShapeError)
    assert error.got == "{a: 3, b: 2}"
    for wrong in (a[:, None], [1, 2], np.array(1)):
        error = refused(lambda wrong=wrong: report({"a": wrong}), errors.ShapeError)
        assert str(error).startswith("a: ")
    refused(lambda: report({"a": np.array([[1], {}], object)}), errors.DtypeError)
    refused(lambda: report({"a": a * 1j}), errors.DtypeError)
    refused(lambda: report({"a": np.ma.masked_equal(a, 1)}), errors.InputError)
    error = refused(lambda: report({"a": a}, "b"), errors.OptionError)
    assert (error.got, error.mend) == ("b", "one of a")
