"""Parts of data: exact sizes, every example once, and classes in proportion."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import errors
from fnn.data import permutation, split
from tests.data.tables import assert_same_tree
from tests.support import refused

KEY = jax.random.key(0)
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}
sizes = st.sampled_from([10, 64])  # a program of `permutation` for each


def tree(n):
    x = np.arange(n * 6, dtype=np.float16).reshape(n, 2, 3)
    names = np.array([f"row {i}" for i in range(n)], object)
    return {"x": x, "y": (np.arange(n), jnp.arange(n, dtype=jnp.int8)), "name": names}


def largest_remainder(shares, n):
    quotas = [fractions.Fraction(share).limit_denominator(1000) * n for share in shares]
    whole = [int(q) for q in quotas]
    order = sorted(range(len(whole)), key=lambda i: (whole[i] - quotas[i], i))
    for i in order[: n - sum(whole)]:
        whole[i] += 1
    return whole


@given(n=sizes, tenths=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_parts_are_slices_of_one_order(n, tenths):
    total = sum(tenths)
    shares = {f"part{i}": t / total for i, t in enumerate(tenths)}
    data = tree(n)
    expected = largest_remainder([fractions.Fraction(t, total) for t in tenths], n)
    if 0 in expected:
        refused(lambda: split(data, shares, KEY), errors.OptionError)
        return
    parts = split(data, shares, KEY)
    assert [len(part["x"]) for part in parts.values()] == expected
    rows = np.split(np.asarray(permutation(KEY, 0, n)), np.cumsum(expected)[:-1])
    for part, at in zip(parts.values(), rows, strict=True):
        assert_same_tree(part, jax.tree.map(lambda a, at=at: np.asarray(a)[at], data))
    counts = dict(zip(shares, map(int, expected), strict=True))
    for name, part in split(data, counts, KEY).items():
        assert_same_tree(part, parts[name])


def test_a_split_is_a_function_of_its_key():
    rows = [split(np.arange(64), SHARES, jax.random.key(i))["test"].tolist() for i in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


@st.composite
def classes(draw, parts):
    """Classes [64] with at least as many members as parts, and sizes of that many parts."""
    k = draw(st.integers(1, 64 // parts))
    rest = draw(st.lists(st.integers(0, k - 1), min_size=64 - k * parts, max_size=64 - k * parts))
    cuts = sorted(
        draw(st.lists(st.integers(1, 63), min_size=parts - 1, max_size=parts - 1, unique=True))
    )
    labels = np.array([*range(k)] * parts + rest)
    return labels, np.diff([0, *cuts, 64]).tolist()


@given(drawn=st.integers(2, 5).flatmap(classes), kind=st.sampled_from([int, str, object]))
def test_each_part_has_each_class_in_proportion(drawn, kind):
    labels, counts = drawn
    data = {"i": np.arange(64), "of": {"label": labels.astype(kind)}}
    wanted = {str(i): count for i, count in enumerate(counts)}
    parts = split(data, wanted, KEY, by="of/label")
    assert [len(part["i"]) for part in parts.values()] == counts
    assert sorted(np.concatenate([part["i"] for part in parts.values()])) == list(range(64))
    for part, count in zip(parts.values(), counts, strict=True):
        assert (part["of"]["label"] == data["of"]["label"][part["i"]]).all()
        for label, members in enumerate(np.bincount(labels)):
            have = (labels[part["i"]] == label).sum()
            assert abs(have - members * count / 64) <= 1 + 1e-9
    again = split(np.arange(64), wanted, KEY, by=data["of"]["label"])
    for part, other in zip(parts.values(), again.values(), strict=True):
        np.testing.assert_array_equal(part["i"], other)
    order = np.argsort(np.asarray(permutation(KEY, 0, 64)))  # classes stay mixed within a part
    assert all((np.diff(order[part]) > 0).all() for part in again.values())


@given(drawn=classes(2))
def test_two_parts_are_scikit_learns(drawn):
    """The numbers of each class, except where several have the same remainder."""
    selection = pytest.importorskip("sklearn.model_selection")
    labels, (train, test) = drawn
    members = np.bincount(labels)
    if train < len(members) or test < len(members):
        return  # which scikit-learn refuses
    parts = split(np.arange(64), {"train": train, "test": test}, KEY, by=labels)
    folds = selection.StratifiedShuffleSplit(1, train_size=train, test_size=test, random_state=0)
    theirs = next(folds.split(labels[:, None], labels))
    ours = [np.bincount(labels[part], minlength=len(members)) for part in parts.values()]
    remainder = members * train % 64
    for mine, rows in zip(ours, theirs, strict=True):
        other = np.bincount(labels[rows], minlength=len(members))
        differ = mine != other
        assert len(set(remainder[differ])) <= 1
        for value in set(remainder.tolist()):  # of those with equal remainders, as many more
            assert mine[remainder == value].sum() == other[remainder == value].sum()


def test_bad_sizes_are_refused():
    x = np.arange(10)
    for sizes, of in (
        ({"a": 0.5, "b": 0.4}, "sum to 1"), ({"a": 5, "b": 4}, "sum to the 10"),
        ({"a": 0.5, "b": 5}, "OptionError"), ({"a": 1.5, "b": -0.5}, "in [0.0, 1.0]"),
        ({"a": -1, "b": 11}, "at least 0"), ({"a": True, "b": 9}, "an int"), ({}, "by the name"),
        ([0.5, 0.5], "by the name"), ({"a": 0.5, "b": "c"}, "a number"),
        ({"a": float("nan"), "b": 1.0}, "in [0.0, 1.0]"), ({"a": 0.96, "b": 0.04}, "at least one"),
    ):  # fmt: skip
        error = refused(lambda sizes=sizes: split(x, sizes, KEY), errors.OptionError)
        assert of in error.expected or of == "OptionError"
        assert str(error).startswith("split: ")
    third = split(x, {"a": 1 / 3, "b": 0.333333, "c": 0.333334}, KEY)
    assert [len(part) for part in third.values()] == [3, 3, 4]
    assert [len(p) for p in split(x, {"a": 10, "b": 0}, KEY).values()] == [10, 0]
    assert [len(p) for p in split(x[:0], {"a": 0}, KEY).values()] == [0]
    refused(lambda: split(x[:0], SHARES, KEY), errors.OptionError)
    refused(lambda: split({"a": x, "b": x[:3]}, SHARES, KEY), errors.ShapeError)
    refused(lambda: split(x, SHARES, 0), errors.RandomKeyError)
    refused(lambda: split(np.ma.masked_equal(x, 3), SHARES, KEY), errors.InputError)


def test_bad_classes_are_refused():
    x, shares = np.arange(10), {"train": 0.5, "test": 0.5}
    y = np.array([0, 1] * 5)
    error = refused(
        lambda: split(x, shares, KEY, by=np.array(["a"] * 9 + ["b"])), errors.OptionError
    )
    assert (error.expected, error.got) == ("at least 2 examples of a class", "1 of class 'b'")
    error = refused(lambda: split(x, shares, KEY, by=y * 0.5), errors.DtypeError)
    assert "np.digitize" in error.mend
    error = refused(lambda: split({"a": x, "b": y}, shares, KEY, by="c"), errors.OptionError)
    assert error.got == "'c' with a, b"
    refused(lambda: split(x, shares, KEY, by=y[:9]), errors.ShapeError)
    refused(lambda: split(x, shares, KEY, by=y[:, None]), errors.ShapeError)
    assert refused(lambda: split(x, shares, KEY, by=y.tolist()), errors.ShapeError).got == "a list"
    gappy = np.array(["a", None] * 5, object)
    assert refused(lambda: split(x, shares, KEY, by=gappy), errors.InputError).got == "5 missing"
    refused(lambda: split(x, shares, KEY, by=np.array(["a", 1] * 5, object)), errors.DtypeError)


def test_a_table_is_split_by_its_rows():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": range(64)})
    error = refused(lambda: split(frame, SHARES, KEY), errors.InputError)
    assert "frame.iloc" in error.mend
    rows = split(np.arange(len(frame)), SHARES, KEY)
    assert sorted(sum((frame.iloc[at]["a"].tolist() for at in rows.values()), [])) == list(
        range(64)
    )
