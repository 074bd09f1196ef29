"""Codes and one-hot vectors against scikit-learn, pandas and dicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import errors
from fnn.data import encode, one_hot
from tests.data.tables import assert_same_tree, call, saved
from tests.support import asarray, refused

pd = pytest.importorskip("pandas")
preprocessing = pytest.importorskip("sklearn.preprocessing")

ints = st.integers(-5, 5) | st.sampled_from([2**31 - 1, -(2**31)])
texts = st.text("ab\0é\U0001f600", max_size=3)
kinds = st.sampled_from([ints, st.booleans(), texts])
lists = kinds.flatmap(
    lambda kind: st.tuples(st.lists(kind, min_size=1, max_size=9), st.lists(kind, max_size=4))
)


def array(values, missing=()):
    """An array of objects with None, NaN and NA here and there."""
    a = np.empty(len(values), object)
    a[:] = values
    for i, gone in zip(missing, (None, np.nan, pd.NA, np.float32("nan")), strict=False):
        a[i % len(a)] = gone
    return a


@given(values=lists, missing=st.lists(st.integers(0, 99), max_size=4))
def test_codes_are_places_in_order(values, missing):
    seen, new = values
    classes = sorted(set(seen))
    expected = [classes.index(v) if v in classes else len(classes) for v in seen + new]
    plain = np.array(seen)
    whole = array(seen + new)
    for x in (array(seen), plain, pd.Series(seen).to_numpy()):
        if x.dtype.kind == "U" and any(v.endswith("\0") for v in seen):
            continue  # which NumPy's arrays of strings drop
        enc = encode(x)
        assert enc.size == len(classes)
        codes = enc(whole)
        assert codes.dtype == np.int32 and codes.tolist() == expected
        back = enc.inverse(codes[: len(seen)])
        assert back.tolist() == seen
        assert back.dtype == object or back.dtype.kind == plain.dtype.kind
    gappy = array([*seen, *seen], missing)  # no category is lost with one half's
    rest = [v for v in gappy if not (v is None or v is pd.NA or v != v)]
    if rest:
        enc, classes = encode(gappy), sorted(set(rest))
        want = [classes.index(v) if v in rest else enc.size for v in map(none, gappy)]
        assert enc(gappy).tolist() == want


def none(v):
    return None if v is pd.NA or v != v else v


@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=9), new=st.lists(ints, max_size=4))
def test_equal_to_scikit_learn(values, new):
    x, both = np.array(values), np.array([*values, *new])
    theirs = preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=99)
    codes = theirs.fit(x[:, None]).transform(both[:, None])[:, 0]
    enc = encode(x)
    assert enc(both).tolist() == np.where(codes == 99, enc.size, codes).tolist()

    hot = preprocessing.OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    want = hot.fit(x[:, None]).transform(both[:, None])
    ours = one_hot(x)
    assert ours(both).dtype == np.float32
    np.testing.assert_array_equal(ours(both), want)
    assert ours.inverse(ours(x)).tolist() == values


@given(values=lists, cut=st.integers(0, 9))
def test_a_stream_gives_what_the_whole_gives(values, cut):
    seen, _ = values
    x = array(seen)
    parts = [part for part in (x[:cut], x[cut:]) if len(part)]
    gone = array([None, None], (0, 1))  # a batch without any
    assert_same_tree(encode(iter([gone, *parts, gone])), encode(x))
    if not isinstance(seen[0], str):
        x = np.array(seen)
        parts = [part for part in (x[:cut], x[cut:]) if len(part)]
        assert_same_tree(one_hot(iter(parts)), one_hot(x))


def test_inside_transforms():
    """Integers of any width, booleans and floats with NaN, on the device as on the host."""
    enc, hot = encode(np.array([-3, 0, 7, 2**31 - 1])), one_hot(np.array([[5, 9], [7, 5]]))
    big = np.array([2**31, 2**32 - 3, 7, 2**31 - 1], np.uint32)
    floats = np.array([7, np.nan, 7.5, -3, np.inf, -np.inf, 2.0**31], np.float32)
    inputs = [np.array([[7, -3], [0, 9]], np.int32), np.array([7, 3], np.uint8), np.array([True])]
    inputs += [big, floats, floats[:6].astype(jnp.bfloat16), floats[:6].astype(np.float16)]
    for x in inputs:
        codes = call(enc, x)
        assert codes.dtype == jnp.int32 and codes.shape == x.shape
        np.testing.assert_array_equal(codes, enc(x))
    assert enc(big).tolist() == [4, 4, 2, 3]
    assert enc(floats).tolist() == [2, 4, 4, 0, 4, 4, 4]
    least = encode(np.array([-(2**31), 0]))
    assert call(least, np.array([-(2.0**31), 2.0**31], np.float32)).tolist() == [0, 2]
    assert encode(np.array([True, False])).inverse(np.array([1, 0])).tolist() == [True, False]

    x = asarray(np.array([[5, 6], [9, 7]], np.int32))
    y = call(hot, x)
    np.testing.assert_array_equal(y, hot(np.asarray(x)))
    np.testing.assert_array_equal(jax.vmap(hot)(x), y)
    assert hot.inverse(y).tolist() == [[5, 5], [9, 7]]  # zeros are the first class
    assert jax.jit(lambda f, y: f.inverse(y))(hot, y).dtype == jnp.int32
    with jax.enable_x64(True):
        far = encode(np.array([2**40, 1]))
        assert call(far, np.array([2**40, 2**40 + 1])).tolist() == [1, 2]
    assert far(np.array([2**40, 2**40 + 1, 2**32 + 1])).tolist() == [1, 2, 2]  # on the host
    refused(lambda: jax.jit(lambda x: far(x))(x), errors.InputError)  # not wrapped to 32 bits


def test_trees_and_checkpoints():
    data = {
        "kind": np.array(["b", "a", "b"]),
        "n": np.array([3, 1, 3]),
        "own": np.array([True] * 3),
    }
    enc = encode(data)
    assert enc.size == {"kind": 2, "n": 2, "own": 1}
    assert enc(data)["kind"].tolist() == [1, 0, 1]
    back = saved(enc)
    assert_same_tree(back, enc)
    assert back.inverse(back(data))["kind"].tolist() == ["b", "a", "b"]
    hot = one_hot(enc(data))
    assert_same_tree(saved(hot), hot)
    refused(lambda: enc({"kind": data["kind"]}), errors.ShapeError)


def test_strings_that_differ_by_what_numpy_drops():
    x = array(["a", "a\0", "", "\0"])
    enc = encode(x)
    assert enc.size == 4 and enc.inverse(enc(x)).tolist() == x.tolist()
    assert enc.inverse(np.array(1)).dtype == object and enc.inverse(np.array(2)) == "a"


def test_a_table_of_embeddings_takes_every_code():
    import fnn

    enc = encode(np.array(["a", "b", "c"]))
    codes = enc(np.array(["b", "?", None], object))
    net = fnn.embedding(enc.size + 1, 2)
    params, _ = net.init(jax.random.key(0), codes)
    assert net(params, codes).shape == (3, 2)


def test_bad_data_is_refused():
    for other, got in (
        (array([1, "a"]), "x of int, str"), (array([True, 2]), "x of bool, int"),
        (array([1, True]), "x of bool, int"), (array([2, 2.0]), "x of float, int"),
        (np.array([0.5]), "not all whole"), (np.array([np.inf]), "not all whole"),
        (np.array([b"a"]), "S1"), (np.array(["2020"], "M8[D]"), "M8" ), (np.array([1j]), "complex"),
        (array([(1, 2)]), "x of tuple"), (array([[1]]), "a list in x"),
    ):  # fmt: skip
        error = refused(lambda other=other: encode(other), errors.DtypeError)
        assert got in error.got or got == "M8" and "datetime64" in error.got
    refused(lambda: encode(array([None])), errors.InputError)
    large = array([2**63, -1]), array([1, 2**70]), array([-(2**64)])
    for big in (np.array([2**63], np.uint64), *large):
        assert refused(lambda big=big: encode(big), errors.InputError).expected.startswith("ints")
    refused(lambda: encode(np.zeros((2, 2), int)), errors.ShapeError)
    refused(lambda: encode(iter([array(["a"]), np.array([1])])), errors.DtypeError)
    error = refused(lambda: encode({"a": np.arange(2), "b": np.ones(2) / 2}), errors.DtypeError)
    assert str(error).startswith("b: expected categories")
    x = np.arange(3)
    for fit in (encode, one_hot):
        error = refused(lambda f=fit: f({"train": x, "test": x}), errors.InputError)
        assert error.layer == fit.__name__
        refused(lambda f=fit: f(x[:0]), errors.ShapeError)
        refused(lambda f=fit: jax.jit(f)(x), errors.InputError)
        refused(lambda f=fit: f(x)(np.array(["a"])), errors.DtypeError)
        refused(lambda f=fit: f(x)(1), errors.InputError)
    for other in (np.ones(2), np.array(["a"]), array([1, 2])):
        error = refused(lambda other=other: one_hot(other), errors.DtypeError)
        assert "fnn.data.encode" in error.mend
    refused(lambda: one_hot(np.arange(3))(np.ones(2)), errors.DtypeError)
    refused(lambda: one_hot(np.arange(3)).inverse(np.ones((2, 2))), errors.ShapeError)


def test_what_strings_cannot_do_is_refused():
    enc = encode(np.array(["a", "b"]))
    for x in (jnp.arange(2), np.arange(2)):
        refused(lambda x=x: enc(x))
    for x, got in ((array(["a", 1]), "x of int, str"), (array([2.5]), "x of float")):
        assert refused(lambda x=x: enc(x), errors.DtypeError).got == got
    for fitted in (np.array([1, 2]), np.array([True])):
        error = refused(lambda f=fitted: encode(f)(array(["1", None])), errors.DtypeError)
        assert error.got == "x of str"
    assert encode(np.array([1, 2]))(array([2.0, None, 1])).tolist() == [1, 2, 0]
    error = refused(lambda: call(enc, np.arange(2)), errors.InputError)
    assert error.mend == "encode on the host, before jit"
    for codes in ([-1], [3]):
        refused(lambda codes=codes: enc.inverse(np.array(codes)), errors.InputError)
    error = refused(lambda: encode(np.array([4, 5])).inverse(np.array([0, 2])), errors.InputError)
    assert (error.expected, error.got) == ("codes below 2", "2")
    refused(lambda: jax.jit(enc.inverse)(np.array([0])), errors.InputError)
    refused(lambda: enc.inverse(np.array([0.0])), errors.DtypeError)
