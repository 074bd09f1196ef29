"""Scales of columns against scikit-learn, NumPy and exact sums."""

import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from fnn.data import clip_outliers, minmax, standardize
from fnn.data import statistics as fnn_statistics
from tests.data.tables import assert_same_tree, batches, call, columns, gaps, saved
from tests.support import asarray, assert_close, refused

preprocessing = pytest.importorskip("sklearn.preprocessing")

X = np.array([[1.0, 5.0, -2.0], [2.0, 5.0, 0.0], [4.0, 5.0, np.nan], [9.0, 5.0, 4.0]])
FITS = (standardize, minmax, clip_outliers)


@given(x=columns(), new=columns(rows=st.just(3)))
def test_standardize_equals_scikit_learn(x, new):
    new = np.resize(new, (3, x.shape[1]))
    ours, theirs = standardize(x), preprocessing.StandardScaler().fit(x)
    for rows in (x, new):
        np.testing.assert_allclose(ours(rows), theirs.transform(rows), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ours.inverse(ours(rows)), rows, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours.std, theirs.scale_, rtol=1e-12)


@given(x=columns(), new=columns(rows=st.just(3)), low=st.integers(-3, 0), high=st.integers(1, 5))
def test_minmax_equals_scikit_learn(x, new, low, high):
    new = np.resize(new, (3, x.shape[1]))
    ours, theirs = minmax(x, low, high), preprocessing.MinMaxScaler((low, high)).fit(x)
    for rows in (x, new):
        np.testing.assert_allclose(ours(rows), theirs.transform(rows), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ours.inverse(ours(rows)), rows, rtol=1e-12, atol=1e-12)


@given(x=columns(), low=st.floats(0, 0.45), high=st.floats(0.55, 1), inf=st.booleans())
def test_limits_equal_quantiles_and_fences(x, low, high, inf):
    clip = clip_outliers(x, quantiles=(low, high))
    expected = np.nanquantile(x, [low, high], axis=0)
    np.testing.assert_array_equal([clip.low, clip.high], expected)
    outside = np.array([[-1e9], [np.inf if inf else 1e9]]) * np.ones(x.shape[1])
    np.testing.assert_array_equal(clip(outside), expected)
    np.testing.assert_array_equal(clip(x), np.clip(x, *expected))  # NaN stays

    q1, q3 = np.nanquantile(x, [0.25, 0.75], axis=0)
    spread = (q1 < q3) | (np.nanmin(x, 0) == np.nanmax(x, 0))
    if not spread.all():
        error = refused(lambda: clip_outliers(x), errors.OptionError)
        assert str(np.flatnonzero(~spread)[0]) in error.got and "constant" in error.mend
    else:
        fences = clip_outliers(x, whiskers=2.0)
        np.testing.assert_allclose(fences.low, q1 - 2 * (q3 - q1), atol=1e-12)
        np.testing.assert_allclose(fences.high, q3 + 2 * (q3 - q1), atol=1e-12)


@given(x=columns(rows=st.integers(2, 12)), cut=st.integers(0, 12), again=st.integers(0, 12))
def test_a_stream_gives_what_the_whole_gives(x, cut, again):
    for fit in (standardize, minmax):
        for axis in (-1, None):
            stream = fit(batches(x, *sorted((cut, again))), axis=axis)
            for a, b in zip(stream, fit(x, axis=axis), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def exact(c):
    """Mean and deviation, in rational numbers to the last step."""
    c = list(map(fractions.Fraction, c.tolist()))
    mean = sum(c) / len(c)
    return float(mean), math.sqrt(sum((v - mean) ** 2 for v in c) / len(c))


def test_a_large_mean_costs_no_digits(monkeypatch):
    """Whole, in chunks of 25 rows, and as a stream; the last column has steps of 1.5e-8."""
    x = 1e8 + np.random.default_rng(0).normal(size=(1000, 3)) * [1, 1e-3, 1e-7]
    mean, std = np.transpose([exact(c) for c in x.T])
    whole = standardize(x)
    np.testing.assert_allclose(whole.std, std, rtol=1e-12)
    monkeypatch.setattr(fnn_statistics, "CHUNK", 75)
    for norm in (whole, standardize(x), standardize(batches(x, 1, 300, 301, 777))):
        np.testing.assert_allclose(norm.mean, mean, rtol=1e-15)
        np.testing.assert_allclose(norm.std[0], std[0], rtol=1e-9)
        np.testing.assert_allclose(norm.std[1], std[1], rtol=1e-5)  # merged means are rounded


def test_equal_values_become_exactly_zero():
    """Though their mean is rounded, as that of ten times 0.1 is."""
    for n in range(1, 40):
        x = np.full(n, 0.1)
        for norm in (standardize(x), standardize(batches(x, n // 3, n // 2))):
            assert norm.std == 1 and norm.mean == 0.1
            assert (norm(x) == 0).all() and (norm.inverse(norm(x)) == 0.1).all()


def test_axes_keep_their_own_statistics():
    x = np.random.default_rng(0).normal(size=(7, 2, 3, 4))
    for axis, over in ((-1, (0, 1, 2)), (1, (0, 2, 3)), ((1, 3), (0, 2)), (None, None)):
        mean, std = (f(x, axis=over, keepdims=True) for f in (np.mean, np.std))
        np.testing.assert_allclose(standardize(x, axis=axis)(x), (x - mean) / std, atol=1e-12)
        low = np.quantile(x, 0.1, axis=over, keepdims=True)
        clip = clip_outliers(x, quantiles=(0.1, 1.0), axis=axis)
        np.testing.assert_array_equal(clip(x), np.maximum(x, low))
    norm = standardize(x[:, 0, 0, 0])  # [n]: one number
    assert norm.mean.shape == () and abs(norm(x[:, 0, 0, 0]).mean()) < 1e-12
    for axis in (0, -4, 4, (1, 1), (1, 0), 1.0, True, "x", [1]):
        error = refused(lambda axis=axis: standardize(x, axis=axis), errors.OptionError)
        assert "other than 0" in error.expected and str(error).startswith("standardize: ")


def test_trees_are_fitted_leaf_by_leaf():
    data = {"a": X, "b": (X[:, 0], asarray(X[:, 1], jnp.bfloat16))}
    for fit in FITS:
        y = fit(data)(data)
        np.testing.assert_array_equal(y["a"], fit(X)(X))
        np.testing.assert_array_equal(y["b"][0], fit(X[:, 0])(X[:, 0]))
        assert isinstance(y["b"][1], jax.Array) and y["b"][1].dtype == jnp.bfloat16
    norm = standardize(data)
    error = refused(lambda: norm({"a": X}), errors.ShapeError)
    assert str(error).startswith("standardize: expected x like the data of the fit, {a: [...], b: ")
    error = refused(lambda: norm({**data, "a": X[:, :2]}), errors.ShapeError)
    assert str(error).startswith("a: expected x [..., 3], as in the fit, got x (4, 2); ")
    error = refused(lambda: standardize({"a": X, "b": X[:, 0] * np.inf}), errors.InputError)
    assert str(error).startswith("b: expected finite values or NaN, got 4 infinities; ")


def test_dtypes_and_places():
    """Host: in float64, result in x's dtype; device: in float32 at least; integers give float32."""
    floats = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-6, ">f8": 0.0}
    for fitted in [fit(X) for fit in FITS] + [minmax(X, 10.0, 11.0)]:
        for name in (*floats, "int32", "uint8", "bool"):
            x = abs(np.nan_to_num(X)).astype(jnp.dtype(name))
            out = {">f8": "float64"}.get(name, name) if name in floats else "float32"
            y = fitted(x)
            assert type(y) is np.ndarray and y.dtype == jnp.dtype(out) and y.dtype.isnative
            np.testing.assert_array_equal(y, fitted(x.astype(np.float64)).astype(y.dtype))
            if name != ">f8":
                on_device = call(fitted, x)
                assert on_device.dtype == y.dtype
                assert_close(on_device, y, tolerance=floats.get(name, 1e-6))


def test_narrow_floats_are_computed_in_wider_ones():
    norm = standardize(np.array([99.75, 100.75]))  # bfloat16 has no 100.25
    for x in (asarray([100.0, 101.0], jnp.bfloat16), np.array([100, 101], jnp.bfloat16)):
        assert np.float32(norm(x)).tolist() == [-0.5, 1.5] and norm(x).dtype == jnp.bfloat16


def test_double_precision_stays():
    with jax.enable_x64(True):
        x = np.nan_to_num(X) + 1e8
        y = call(standardize(x), x)
        assert y.dtype == np.float64
        assert_close(y, standardize(x)(x))


def test_inside_transforms():
    x = asarray(np.nan_to_num(X), jnp.float32)
    for fit in FITS:
        fitted = fit(X)
        y = call(fitted, x)
        assert_close(y, np.float32(fitted(np.asarray(x))))
        np.testing.assert_array_equal(jax.jit(lambda x, f=fitted: f(x))(x), y)  # a closure
        np.testing.assert_array_equal(jax.vmap(fitted)(x), y)
        slope = jax.grad(lambda x, f=fitted: f(x).sum())(x)
        assert np.isfinite(slope).all()
        if hasattr(fitted, "inverse"):
            assert_close(jax.jit(lambda f, y: f.inverse(y))(fitted, y), x, tolerance=1e-5)
    assert_close(
        jax.grad(lambda x: standardize(X)(x).sum())(x)[0], 1 / np.float32(standardize(X).std)
    )


def test_a_checkpoint_keeps_every_bit(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 3))
    trees = {"a": x, "b": (x[:, 0],)}
    for fit in FITS:
        fitted = fit(trees)
        back = saved(fitted)
        assert type(back) is type(fitted)
        assert_same_tree(back, fitted)
        assert_same_tree(back(trees), fitted(trees))
    fnn.checkpoint.save(tmp_path / "one", standardize(x))
    rebuilt = fnn.data.Standard(**fnn.checkpoint.restore(tmp_path / "one"))  # without refitting
    assert_same_tree(rebuilt, standardize(x))


def test_tiny_deviations_divide_by_no_zero():
    x = np.array([0.0, 1e-300, 3e-300])
    assert standardize(x).std == 1.0  # the squares vanish
    x = np.array([0.0, 1e-60])
    norm = standardize(x)
    np.testing.assert_allclose(norm(x), [-1, 1])
    assert np.isfinite(call(norm, np.float32(x))).all()  # where float32 has only zeros


def test_bad_data_is_refused():
    inf, gone = X.copy(), X.copy()
    inf[:2, 0], gone[:, 2] = [np.inf, -np.inf], np.nan
    for fit in (standardize, minmax):
        error = refused(lambda fit=fit: fit(inf), errors.InputError)
        assert (error.got, error.layer) == ("2 infinities in column 0", fit.__name__)
        error = refused(lambda fit=fit: fit(np.array([1e308, -1e308])), errors.InputError)
        assert "float64 holds" in error.expected
    for fit in FITS:
        error = refused(lambda fit=fit: fit(gone), errors.InputError)
        assert error.got == "none in column 2"
        error = refused(lambda fit=fit: fit({"train": X, "test": X}), errors.InputError)
        assert 'data["train"]' in error.mend and "fnn.data.prepare" in error.mend
        refused(lambda fit=fit: fit({"train": X, "valid": X}), errors.InputError)
        assert fit({"train": X})({"train": X})["train"].shape == X.shape
        refused(lambda fit=fit: fit(X[:0]), errors.ShapeError)
        refused(lambda fit=fit: fit({}), errors.ShapeError)
        refused(lambda fit=fit: fit(np.array(1.0)), errors.ShapeError)
        refused(lambda fit=fit: fit({"a": X, "b": X[:2]}), errors.ShapeError)
        for other in (X.astype(str), X.astype(object), X.astype("M8[s]"), X + 1j):
            refused(lambda fit=fit, other=other: fit(other), errors.DtypeError)
            refused(lambda fit=fit, other=other: fit(X)(other), errors.DtypeError)
        refused(lambda fit=fit: fit([1.0, 2.0]), errors.InputError)
        refused(lambda fit=fit: fit(np.ma.masked_invalid(X)), errors.InputError)
        error = refused(lambda fit=fit: jax.jit(fit)(X), errors.InputError)
        assert error.mend == "fit outside jit"
        for wrong in (X[:, :2], X[:, :1], X[0, 0], X[None, :, 0]):
            error = refused(lambda fit=fit, wrong=wrong: fit(X)(wrong), errors.ShapeError)
            assert error.got == f"x {wrong.shape}" and "[..., 3]" in error.expected
    refused(lambda: standardize(X[:, :1])(X), errors.ShapeError)  # one column is not any number


def test_bad_streams_and_options_are_refused():
    refused(lambda: standardize(iter(())), errors.ShapeError)
    error = refused(lambda: standardize(iter([X, X[:, :2]])), errors.ShapeError)
    assert "batches like the first" in error.expected
    refused(lambda: standardize(iter([{"a": X}, {"b": X}])), errors.ShapeError)
    error = refused(lambda: clip_outliers(iter([X])), errors.InputError)
    assert "sample" in error.mend
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0), ("a", 1.0)):
        refused(lambda low=low, high=high: minmax(X, low, high), errors.OptionError)
    for options in (
        {"whiskers": -1.0}, {"whiskers": np.inf}, {"whiskers": 1.0, "quantiles": (0.1, 0.9)},
        {"quantiles": (0.9, 0.1)}, {"quantiles": 0.1}, {"quantiles": (0.1, 1.1)},
    ):  # fmt: skip
        refused(lambda options=options: clip_outliers(X, **options), errors.OptionError)


def test_whiskers_make_no_column_constant():
    x = np.array([[0.0, 1.0, 5.0]] * 8 + [[9.0, 1.0, 6.0]] * 2)
    x[:3, 2] = 4
    error = refused(lambda: clip_outliers(x), errors.OptionError)
    assert (error.got, error.layer) == ("equal ones in column 0", "clip_outliers")
    np.testing.assert_array_equal(clip_outliers(x[:, 1:])(x[:, 1:]), x[:, 1:])
    error = refused(lambda: clip_outliers(np.array([1.0] * 5 + [np.inf])), errors.OptionError)
    assert error.got == "equal ones"


def test_infinities_are_values_to_clip():
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0, np.inf])
    clip = clip_outliers(x)
    np.testing.assert_allclose(clip.high, np.quantile(x, 0.75) + 1.5 * 2.5)
    assert clip(x)[-1] == clip.high
    error = refused(lambda: clip_outliers(np.array([1.0, np.inf, np.inf])), errors.InputError)
    assert "limits" in error.expected


@given(x=columns(elements=gaps, rows=st.just(1)))
def test_one_row(x):
    assert (standardize(x)(x) == 0).all() and (minmax(x)(x) == 0).all()
    np.testing.assert_array_equal(clip_outliers(x)(x), x)


def test_axes_without_elements():
    for fit in FITS:
        for none in (np.zeros((5, 0)), np.zeros((5, 2, 0))):  # no columns: nothing to fit
            assert fit(none)(none).shape == none.shape
            assert refused(lambda f=fit, x=none: f(x, axis=None), errors.InputError).got == "none"
        error = refused(lambda f=fit: f(np.zeros((5, 0, 2))), errors.InputError)
        assert error.got == "none in columns 0, 1"


def test_a_column_may_be_named_as_a_split_is():
    table = {"test": X[:, 0], "age": X[:, 0] + 1}
    assert standardize(table)(table)["test"].shape == (4,)


def test_a_batch_without_values_changes_nothing():
    x, gone = np.array([1e200, 1e200]), np.array([np.nan, np.nan])
    for parts in ([x, gone], [gone, x]):
        assert standardize(iter(parts)).std == 1 and standardize(iter(parts)).mean == 1e200
