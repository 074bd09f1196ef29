"""What every function on trees refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import tree
from tests.support import assert_teaches, refused
from tests.tree.support import DICTS, PARAMS

WRONG = {
    "select nothing": (lambda: tree.select(PARAMS, "conv2/kernel"), "select", "conv1/kernel"),
    "select a node": (lambda: tree.select(PARAMS, "conv1"), "select", 'write "conv1/*"'),
    "select without a pattern": (lambda: tree.select(PARAMS), "select", "one pattern"),
    "select by a number": (lambda: tree.select(PARAMS, 3), "select", "strings"),
    "select in nothing": (lambda: tree.select({}, "*"), "select", "empty"),
    "one of two": (lambda: tree.mask(PARAMS, "*", "cnv1/bias"), "mask", "conv1/bias"),
    "stop_gradient": (lambda: tree.stop_gradient(PARAMS, "nope"), "stop_gradient", "got nope"),
    "count": (lambda: tree.count(PARAMS, "nope"), "count", "got nope"),
    "nbytes": (lambda: tree.nbytes({"a": "text"}), "a", "arrays"),
    "split": (lambda: tree.split(PARAMS, "nope"), "split", "got nope"),
    "split of a tuple": (lambda: tree.split({"a": (1, 2)}, "a/0"), "a", "nested dicts"),
    "split of a leaf": (lambda: tree.split(jnp.ones(2), ""), "split", "nested dicts"),
    "split by slashes": (lambda: tree.split({"a/b": 1}, "*"), "split", "'a/b'"),
    "split by ints": (lambda: tree.split({0: 1}, "*"), "split", "strings"),
    "merge": (lambda: tree.merge({"a": {"b": 1}}, {"a": {"b": 2}}), "merge", "two leaves at a/b"),
    "merge through": (lambda: tree.merge({"a": 1}, {"a": {"b": 2}}), "merge", "leads through"),
    "merge lists": (lambda: tree.merge({"a": [1]}, {}), "a", "nested dicts"),
    "from_paths": (lambda: tree.from_paths([1]), "from_paths", "by path"),
    "from_paths numbers": (lambda: tree.from_paths({1: 2}), "from_paths", "by path"),
    "update nothing": (
        lambda: tree.update(PARAMS, "conv1/kernl", 1),
        "update",
        "did you mean conv1/kernel",
    ),
    "update shape": (lambda: tree.update(PARAMS, "conv1/bias", jnp.ones(3)), "conv1/bias", "(3,)"),
    "update by a number": (lambda: tree.update(PARAMS, "conv1/bias", 0.0), "conv1/bias", "(2,)"),
    "update dtype": (
        lambda: tree.update(PARAMS, "conv1/bias", jnp.ones(2, jnp.bfloat16)),
        "conv1/bias",
        "bfloat16",
    ),
    "update by text": (lambda: tree.update(PARAMS, "conv1/bias", "x"), "conv1/bias", "an array"),
    "update by None": (lambda: tree.update(PARAMS, "conv1/bias"), "conv1/bias", "an array"),
    "update twice": (
        lambda: tree.update(PARAMS, {"*/bias": lambda b: b, "conv1/*": lambda b: b}),
        "update",
        "two for conv1/bias",
    ),
    "update by both": (lambda: tree.update(PARAMS, {"*": abs}, 3), "update", "no value beside"),
    "compare tolerance": (lambda: tree.compare(1.0, 1.0, rtol=-1), "compare", "rtol"),
    "compare text": (lambda: tree.compare({"a": "x"}, {"a": "y"}), "a", "arrays"),
    "compare tracers": (
        lambda: jax.eval_shape(lambda x: tree.compare({"a": x}, {"a": x}), jnp.ones(2)),
        "a",
        "outside jit",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs(name):
    call, where, said = WRONG[name]
    error = refused(call)
    assert_teaches(error, where)
    assert said in str(error) and len(str(error)) < 400


@given(DICTS, st.text("ab1_*?/[]", max_size=5))
def test_no_pattern_gives_another_error(nested, pattern):
    for call in (tree.select, tree.split, tree.mask, tree.stop_gradient, tree.count):
        try:
            call(jax.tree.map(np.float32, nested), pattern)
        except fnn.FnnError as error:
            assert str(error).startswith(call.__name__)
