"""Fitted functions in chains, splits prepared together, and a whole path from table to params."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import fnn
from fnn import errors
from fnn.data import (
    chain,
    clip_outliers,
    encode,
    impute,
    minmax,
    one_hot,
    prepare,
    split,
    standardize,
)
from tests.data.tables import assert_same_tree, call, columns, saved
from tests.support import refused

X = np.array([[1.0, np.nan, 7.0], [3.0, 4.0, 7.0], [np.nan, 5.0, 8.0], [3.0, 6.0, 9.0]])


@given(x=columns())
def test_a_chain_equals_scikit_learns_pipeline(x):
    pipeline = pytest.importorskip("sklearn.pipeline")
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    fill = impute(x)
    norm = standardize(fill(x))
    both = chain(fill, norm, minmax(norm(fill(x))))
    theirs = pipeline.make_pipeline(SimpleImputer(), StandardScaler(), MinMaxScaler())
    np.testing.assert_allclose(both(x), theirs.fit_transform(x), rtol=1e-9, atol=1e-9)
    _, fitted = prepare({"train": {"x": x}}, {"x": [impute, standardize, minmax]})
    assert_same_tree(fitted["x"], both)


def test_inverses_in_reverse_order():
    x = X[:, 2]
    both = chain(standardize(x), minmax(standardize(x)(x), 5, 6))
    np.testing.assert_allclose(both.inverse(both(x)), x)
    np.testing.assert_allclose(call(both, jnp.float32(x)), both(x), rtol=1e-6)
    error = refused(lambda: chain(impute(x), standardize(x)).inverse(x), errors.InputError)
    assert error.got == "Imputation, which has none" and str(error).startswith("chain: ")
    codes = np.array(["a", "b", "a"])
    enc = encode(codes)
    hot = chain(enc, one_hot(enc(codes)))
    assert hot.inverse(hot(codes)).tolist() == codes.tolist()
    assert chain()(x) is x


def test_only_fitted_functions_are_chained():
    norm = standardize(X)
    for wrong in (np.log1p, jnp.log, standardize, {"x": X}, None, 3):
        error = refused(lambda wrong=wrong: chain(norm, wrong), errors.OptionError)
        assert "travel with the model" in error.expected
    whole = jax.jit(lambda norm, x: chain(norm, norm)(x))  # built of traced ones too
    np.testing.assert_allclose(whole(norm, jnp.float32(X)), np.float32(norm(norm(X))), rtol=1e-5)


def parts():
    train = {"x": X, "kind": np.array(["a", "b", "a", "b"]), "y": np.arange(4)}
    return {"train": train, "test": {"x": X * 100, "kind": np.array(["b", "c", "a", "a"]), "y": X}}


def test_what_is_fitted_sees_the_training_part_alone():
    given = parts()
    fits = {"x": [functools.partial(impute, indicator=True), standardize], "kind": encode}
    found, fitted = prepare(given, fits)
    fill = impute(X, indicator=True)
    norm = standardize(fill(X))
    for part in given:
        np.testing.assert_array_equal(found[part]["x"], norm(fill(given[part]["x"])))
        assert found[part]["y"] is given[part]["y"]
    assert found["test"]["kind"].tolist() == [1, 2, 0, 0]
    assert given["train"]["x"] is X  # new dicts
    other = {**given, "test": {**given["test"], "x": np.ones((2, 3))}}
    assert_same_tree(prepare(other, fits)[1], fitted)
    assert_same_tree(saved(fitted), fitted)
    on_test = prepare({**given, "test": {**given["test"], "y": X}}, {"x": standardize}, "test")[1]
    assert_same_tree(on_test["x"], standardize(X * 100))


def test_bad_parts_and_fits_are_refused():
    given, fits = parts(), {"x": standardize}
    for wrong in (X, {"train": X}, [given], {}):
        refused(lambda wrong=wrong: prepare(wrong, fits))
    error = refused(lambda: prepare(given, fits, "trian"), errors.OptionError)
    assert (error.expected, error.got) == ("a part trian", "train, test")
    error = refused(lambda: prepare(given, {"z": standardize}), errors.OptionError)
    assert error.got == "train with x, kind, y"
    refused(lambda: prepare(given, [standardize]), errors.InputError)
    for fit in (standardize(X), lambda x: np.log1p, lambda x: x, 3, [3]):
        error = refused(lambda fit=fit: prepare(given, {"x": fit}))
        assert str(error).startswith("x: ")
    error = refused(lambda: prepare(given, {"kind": standardize}), errors.DtypeError)
    assert str(error).startswith("kind: ")
    given["test"]["x"] = X[:, :2]
    error = refused(lambda: prepare(given, fits), errors.ShapeError)
    assert str(error).startswith("test/x: expected x [..., 3]")


def test_from_a_table_to_predictions(tmp_path):
    """The network sees the same rows in training and, restored, in use: host, device, exported."""
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    age, sex = rng.normal(40, 9, 80), rng.choice(["f", "m"], 80)
    frame = pd.DataFrame({"age": age, "fare": rng.gamma(1, 30, 80), "sex": sex, "y": age > 40})
    frame.loc[::9, "age"] = np.nan
    frame.loc[::7, "sex"] = None
    table = fnn.data.from_frame(frame, {"x": ["age", "fare"], "sex": "sex", "y": "y"})
    raw = split(table, {"train": 0.75, "test": 0.25}, jax.random.key(0), by="y")
    fits = {"x": [clip_outliers, impute, standardize], "sex": encode}
    data, fitted = prepare(raw, fits)
    assert abs(data["train"]["x"].mean(0)).max() < 1e-6
    embed, head = fnn.embedding(fitted["sex"].size + 1, 2), fnn.dense(1)

    @fnn.compose(embed=embed, head=head)
    def net(f, batch):
        return f.head(jnp.concatenate([batch["x"], f.embed(batch["sex"])], -1))

    rows = {"x": data["test"]["x"], "sex": data["test"]["sex"]}
    params, _ = net.init(jax.random.key(0), rows)
    fnn.checkpoint.save(tmp_path / "model", {"params": params, "fitted": fitted})
    model = fnn.checkpoint.restore(tmp_path / "model", {"params": params, "fitted": fitted})

    @jax.jit
    def predict(model, x, sex):
        return net(model["params"], {"x": model["fitted"]["x"](x), "sex": sex})

    sexes = model["fitted"]["sex"](raw["test"]["sex"])
    numbers = {"params": model["params"], "fitted": {"x": model["fitted"]["x"]}}
    y = predict(numbers, raw["test"]["x"], sexes)
    np.testing.assert_allclose(y, net(params, rows), rtol=1e-5, atol=1e-5)
    closed = jax.jit(lambda x, sex: predict(numbers, x, sex))
    exported = jax.export.export(closed)(raw["test"]["x"], sexes)
    np.testing.assert_allclose(exported.call(raw["test"]["x"], sexes), y, rtol=1e-6)
