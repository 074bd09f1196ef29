"""Differences against NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fnn import tree
from tests.support import asarray
from tests.tree.support import PARAMS


def test_equal_trees_do_not_differ():
    found = tree.compare(PARAMS, jax.tree.map(asarray, PARAMS))
    assert not found and len(found) == 0 and str(found) == "no differences"


def test_compare_tells_what_and_where():
    other = {
        "conv1": {"kernel": PARAMS["conv1"]["kernel"].copy(), "bias": np.zeros(3, np.float32)},
        "block": {"bn": {"scale": np.ones(2, np.float64), "offset": np.zeros(2)}},
    }
    other["conv1"]["kernel"][1, 2, 0, 1] = 2.5
    other["conv1"]["kernel"][0, 0, 0, 0] = 2.25
    assert str(tree.compare(PARAMS, other)).splitlines() == [
        "block/bn/bias: only in the first",
        "block/bn/offset: only in the second",
        "block/bn/scale: dtype float32 and float64",
        "block/conv1/kernel: only in the first",
        "conv1/bias: shape (2,) and (3,)",
        "conv1/kernel: 2 of 18 values, most by 0.5 (relative 0.2) at (1, 2, 0, 1): 2.0 and 2.5",
    ]
    assert tree.compare(PARAMS, other)[0] == ("block/bn/bias", "only in the first")


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=6),
    st.lists(st.floats(width=32), min_size=1, max_size=6),
    st.sampled_from([0.0, 1e-6, 0.5]),
    st.sampled_from([0.0, 1e-3, 10.0]),
    st.booleans(),
)
def test_compare_says_as_numpy_allclose(a, b, rtol, atol, equal_nan):
    n = min(len(a), len(b))
    a, b = np.array(a[:n], np.float32), np.array(b[:n], np.float32)
    with np.errstate(all="ignore"):
        same = np.allclose(np.float64(a), np.float64(b), rtol, atol, equal_nan)
    assert bool(tree.compare(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan)) == (not same)


def test_compare_values_that_are_no_plain_floats():
    big = np.array([2**62], np.int64)
    assert str(tree.compare({"n": big}, {"n": big + 1})).startswith("n: 1 of 1 values")
    assert "inf" in str(tree.compare(np.float32(np.inf), np.float32(-np.inf)))
    assert not tree.compare(np.array([np.inf, -np.inf]), np.array([np.inf, -np.inf]))
    assert tree.compare(np.inf, 1.0, rtol=1.0) and tree.compare(1.0, np.inf, rtol=1.0)
    assert not tree.compare(1.0, 2.0, rtol=0.5) and tree.compare(2.0, 1.0, rtol=0.5)
    assert str(tree.compare(np.nan, np.nan)) == "the tree: 1 of 1 values: nan and nan"
    assert not tree.compare(np.nan, np.nan, equal_nan=True)
    narrow = jnp.ones(2, jnp.bfloat16)
    assert not tree.compare(narrow, narrow + 0) and tree.compare(narrow, narrow + 1)
    assert not tree.compare(jnp.zeros((0, 3)), jnp.zeros((0, 3)))
    keys = jax.random.key(0), jax.random.key(1)
    assert not tree.compare(keys[0], keys[0]) and tree.compare(*keys)
    assert tree.compare(np.array([1 + 2j]), np.array([1 + 3j]))
    assert tree.compare(np.array([True]), np.array([False]))
