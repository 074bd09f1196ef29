"""Values come back to the last bit, from any dtype and either format."""

import json
import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import fnn
from tests.log.support import Run, strictly

DTYPES = (
    "float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint32", "uint64", "bool",
)  # fmt: skip
names = st.text(min_size=1, max_size=8).filter(lambda s: not {"\n", "\r"} & set(s))
named = names.map(lambda name: f"train/{name}")
shapes = arrays.array_shapes(min_dims=0, max_dims=2, max_side=3)


def values(shape):
    return st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.arrays(dtype, shape))


def bfloat16(shape):
    raw = arrays.arrays("uint16", shape)
    return raw.map(lambda a: a.view(ml_dtypes.bfloat16))


def widened(array):
    with np.errstate(invalid="ignore"):  # signalling NaN
        return array.astype(np.float64)


metrics = st.dictionaries(named, shapes.flatmap(lambda s: values(s) | bfloat16(s)), max_size=4)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@given(st.lists(metrics, min_size=1, max_size=5))
def test_metrics_come_back_exactly(tmp_path_factory, suffix, steps):
    path = tmp_path_factory.mktemp("log") / f"run.{suffix}"
    Run(lambda step: steps[step - 1]).to(len(steps), getattr(fnn.log, suffix)(path, interval=0.0))
    if suffix == "jsonl":
        for line in path.read_text("utf-8").split("\n")[:-1]:
            strictly(line)
    columns = fnn.log.read(path)
    assert set(columns) == {"step", "epoch", "time"}.union(*steps)
    for name in set().union(*steps):
        for row, step in zip(columns[name], steps, strict=True):
            if name not in step:
                assert row is None or np.isnan(np.asarray(row, float)).all()
                continue
            wanted = step[name]
            wide = widened(wanted) if wanted.dtype == ml_dtypes.bfloat16 else wanted
            found = np.asarray(row)
            np.testing.assert_array_equal(found.tolist(), wide.tolist())  # as Python's own numbers
            if wanted.dtype != bool:
                back = np.array(found.tolist(), wide.dtype).astype(wanted.dtype)
                assert wanted.dtype.kind not in "iu" or np.array_equal(back, wanted)
                np.testing.assert_array_equal(widened(back), widened(wanted))


def test_what_is_not_finite_is_a_word_of_valid_json(tmp_path):
    path = tmp_path / "run.jsonl"
    bad = [math.nan, math.inf, -math.inf, -0.0]
    given = {"train/loss": None, "train/many": np.array([math.nan, 1.0], np.float32)}
    run = Run(lambda step: given | {"train/loss": np.float32(bad[step - 1])})
    run.to(4, fnn.log.jsonl(path), fnn.log.csv(tmp_path / "run.csv"))
    lines = [strictly(line) for line in path.read_text().splitlines()]
    assert [line["train/loss"] for line in lines] == ["NaN", "Infinity", "-Infinity", -0.0]
    assert [float(line["train/loss"]) for line in lines[1:]] == bad[1:]  # Python reads the words
    for suffix in ("jsonl", "csv"):
        columns = fnn.log.read(tmp_path / f"run.{suffix}")
        np.testing.assert_array_equal(columns["train/loss"], bad)
        assert np.signbit(columns["train/loss"][3])
        np.testing.assert_array_equal(columns["train/many"], [[math.nan, 1.0]] * 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"])
def test_every_value_of_a_small_dtype_of_jax(tmp_path, dtype):
    dtype = jnp.dtype(dtype)
    bits = np.arange(2**16 if dtype.itemsize == 2 else 2**8)
    if dtype.name.endswith("int4"):
        every = np.arange(-8 if dtype.name == "int4" else 0, 8).astype(dtype)
    else:
        every = bits.astype(f"uint{8 * dtype.itemsize}").view(dtype)
    path = tmp_path / "run.jsonl"
    Run(lambda step: {"train/x": every}).to(1, fnn.log.jsonl(path))
    (back,) = fnn.log.read(path)["train/x"]
    np.testing.assert_array_equal(back, widened(every))
    assert not dtype.name.endswith("int4") or back.dtype == np.int64


def test_integers_too_large_for_float64_stay_exact_beside_missing_values(tmp_path):
    big = 2**53 + 1
    path = tmp_path / "run.csv"
    Run(lambda step: {"train/n": np.int64(big), "train/m": np.uint64(2**64 - 1)}, evaluate=2).to(
        2, fnn.log.csv(path)
    )
    columns = fnn.log.read(path)
    assert columns["train/n"].tolist() == [big, big, None]
    assert columns["train/m"].tolist() == [2**64 - 1, 2**64 - 1, None]


def test_columns_have_plain_dtypes(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text(
        json.dumps({"step": 1, "epoch": 0, "time": 1.5, "a": True, "b": 3, "c": [1, 2], "e": [1]})
        + "\n"
        + json.dumps({"step": 2, "epoch": 0, "time": 2.5, "a": False, "b": 4.5, "c": [3, 4],
                      "d": 7, "e": [1, 2], "f": None})
        + "\n"
    )  # fmt: skip
    columns = fnn.log.read(path)
    assert {name: column.dtype.kind for name, column in columns.items()} == {
        "step": "i", "epoch": "i", "time": "f", "a": "b", "b": "f", "c": "i", "d": "f", "e": "O",
        "f": "f",
    }  # fmt: skip
    assert columns["c"].shape == (2, 2) and columns["e"].tolist() == [[1], [1, 2]]
    assert np.isnan(columns["d"][0]) and np.isnan(columns["f"]).all()


def test_a_metric_that_is_a_tree_becomes_several(tmp_path):
    path = tmp_path / "run.jsonl"
    tree = {"per": {"cat": np.float32(1), "dog": (2, 3.5)}, "n": [np.arange(2)]}
    Run(lambda step: {"train/m": tree}).to(1, fnn.log.jsonl(path))
    row = strictly(path.read_text())
    assert {k: v for k, v in row.items() if k.startswith("train/")} == {
        "train/m/n/0": [0, 1], "train/m/per/cat": 1.0, "train/m/per/dog/0": 2,
        "train/m/per/dog/1": 3.5,
    }  # fmt: skip
