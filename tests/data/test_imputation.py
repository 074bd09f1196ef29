"""Missing values replaced as by scikit-learn's SimpleImputer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import errors
from fnn.data import impute
from tests.data.tables import assert_same_tree, batches, call, columns, saved
from tests.support import asarray, refused

sklearn_impute = pytest.importorskip("sklearn.impute")

X = np.array([[1.0, np.nan, 7.0], [3.0, 4.0, 7.0], [np.nan, 5.0, 8.0], [3.0, 5.0, 9.0]])
STRATEGIES = ("mean", "median", "most_frequent", "constant")
strategies = st.sampled_from(STRATEGIES)


def value_of(strategy):
    return -1.5 if strategy == "constant" else None


@given(x=columns(), new=columns(rows=st.just(3)), strategy=strategies, indicator=st.booleans())
def test_equal_to_scikit_learn(x, new, strategy, indicator):
    value = value_of(strategy)
    new = np.resize(new, (3, x.shape[1]))
    theirs = sklearn_impute.SimpleImputer(
        strategy=strategy, fill_value=value, add_indicator=indicator
    ).fit(x)
    if indicator:  # which would else refuse new columns with missing values
        theirs.indicator_.error_on_new = False
    ours = impute(x, strategy, value=value, indicator=indicator)
    for rows in (x, new):
        np.testing.assert_allclose(ours(rows), theirs.transform(rows), rtol=1e-12, atol=1e-12)


@given(x=columns(), cut=st.integers(0, 12), again=st.integers(0, 12))
def test_a_stream_gives_what_the_whole_gives(x, cut, again):
    for strategy in ("mean", "most_frequent", "constant"):
        options = {"strategy": strategy, "value": value_of(strategy), "indicator": True}
        stream = impute(batches(x, *sorted((cut, again))), **options)
        whole = impute(x, **options)
        np.testing.assert_allclose(stream.values, whole.values, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(stream.indicated, whole.indicated)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_inside_transforms_and_in_checkpoints(strategy):
    for indicator in (False, True):
        fill = impute(X, strategy, value=value_of(strategy), indicator=indicator)
        want = fill(np.float32(X))
        assert want.dtype == np.float32 and want.shape == (4, 3 + 2 * indicator)
        x = asarray(X, jnp.float32)
        np.testing.assert_array_equal(call(fill, x), want)
        np.testing.assert_array_equal(jax.vmap(fill)(x), want)
        slope = jax.grad(lambda x, fill=fill: fill(x)[:, :3].sum())(x)
        np.testing.assert_array_equal(slope, ~np.isnan(X))
        low = call(fill, x.astype(jnp.bfloat16))
        assert low.dtype == jnp.bfloat16 and np.isfinite(np.float32(low)).all()
        assert_same_tree(saved(fill), fill)
        np.testing.assert_array_equal(saved(fill)(np.float32(X)), want)


def test_trees_integers_and_one_column():
    data = {"a": X, "b": np.array([1.0, np.nan, 4.0, 4.0])}
    for strategy, expected in (("mean", 3.0), ("median", 4.0), ("most_frequent", 4.0)):
        y = impute(data, strategy)(data)
        assert y["b"].tolist() == [1, expected, 4, 4]
        np.testing.assert_array_equal(y["a"], impute(X, strategy)(X))
    whole = impute(np.array([1, 2, 2]), "most_frequent", indicator=False)
    assert whole(np.array([5, 6])).dtype == np.float32
    fill, i = impute(X, indicator=True), np.ones((2, 3), np.int32)
    np.testing.assert_array_equal(fill(i), [[1, 1, 1, 0, 0]] * 2)  # no integer is missing
    np.testing.assert_array_equal(call(fill, i), fill(i))
    images = np.full((2, 3, 4, 5), np.nan)
    images[0, 0, 0] = np.arange(5)
    np.testing.assert_array_equal(impute(images)(images)[1, 2, 3], np.arange(5))
    assert impute(images, indicator=True)(images).shape == (2, 3, 4, 10)


def test_bad_data_and_options_are_refused():
    gone, inf = X.copy(), X.copy()
    gone[:, 1], inf[0, 2] = np.nan, np.inf
    for strategy in STRATEGIES:
        value = value_of(strategy)
        error = refused(lambda s=strategy, v=value: impute(inf, s, value=v), errors.InputError)
        assert error.got == "1 infinities in column 2"
        if strategy != "constant":
            error = refused(lambda s=strategy: impute(gone, s), errors.InputError)
            assert error.got == "none in column 1"
        refused(lambda s=strategy, v=value: impute(X[:0], s, value=v), errors.ShapeError)
        refused(lambda s=strategy, v=value: impute({"train": X, "test": X}, s, value=v))
    assert impute(gone, "constant", value=3)(gone)[:, 1].tolist() == [3.0] * 4
    for strategy in ("mean", "median"):
        error = refused(lambda s=strategy: impute(np.array([1e308, 1.5e308]), s), errors.InputError)
        assert error.expected == f"values whose {strategy} float64 holds"
    error = refused(lambda: impute(iter([X]), "median"), errors.InputError)
    assert "sample" in error.mend
    refused(lambda: impute(X, "mode"), errors.OptionError)
    refused(lambda: impute(X, "constant"), errors.OptionError)
    refused(lambda: impute(X, "mean", value=1.0), errors.OptionError)
    refused(lambda: impute(X[:, 0], indicator=True), errors.OptionError)
    refused(lambda: impute(X)(X[:, :2]), errors.ShapeError)
    refused(lambda: impute(X, indicator=True)({"a": X}), errors.ShapeError)
