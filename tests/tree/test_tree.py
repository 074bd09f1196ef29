"""Trees of parameters: paths, selection, surgery and comparison.

The oracle of paths and globs is written here: a walk through dicts, and globs as regular
expressions.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors, tree
from tests.support import assert_teaches

PARAMS = {
    "conv1": {"kernel": np.full((3, 3, 1, 2), 2.0, np.float32), "bias": np.zeros(2, np.float32)},
    "block": {
        "conv1": {"kernel": np.ones((3, 3, 2, 2), np.float32)},
        "bn": {"scale": np.ones(2, np.float32), "bias": np.zeros(2, jnp.bfloat16)},
    },
}
PATHS = (
    "block/bn/bias",
    "block/bn/scale",
    "block/conv1/kernel",
    "conv1/bias",
    "conv1/kernel",
)


# --- oracles


def walk(node, path=()):
    """(path, leaf) pairs of nested dicts, sorted by name."""
    if not isinstance(node, dict):
        return [("/".join(path), node)]
    return [pair for name in sorted(node) for pair in walk(node[name], (*path, name))]


def glob(pattern):
    """A shell glob without brackets as a regular expression."""
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts), re.DOTALL)


NAMES = st.text("ab1_", min_size=1, max_size=3)
LEAVES = st.integers(0, 9)
DICTS = st.dictionaries(
    NAMES,
    st.recursive(LEAVES, lambda node: st.dictionaries(NAMES, node, min_size=1, max_size=3)),
    max_size=4,
)


# --- paths


@given(DICTS)
def test_paths_are_those_of_a_walk_in_the_order_of_leaves(nested):
    assert list(tree.to_paths(nested).items()) == walk(nested)
    assert tree.paths(nested) == tuple(path for path, _ in walk(nested))
    assert list(tree.to_paths(nested).values()) == jax.tree.leaves(nested)


@given(DICTS)
def test_from_paths_undoes_to_paths(nested):
    assert tree.from_paths(tree.to_paths(nested)) == nested


def test_paths_of_other_containers():
    class Point(NamedTuple):
        x: int
        y: list

    assert tree.paths({"a": (1, [2, 3])}) == (
        "a/0",
        "a/1/0",
        "a/1/1",
    )
    assert tree.paths(Point(4, [5])) == ("x", "y/0")
    assert tree.to_paths(7) == {"": 7} and tree.from_paths({"": 7}) == 7
    assert tree.to_paths({}) == {} and tree.from_paths({}) == {}


@pytest.mark.parametrize(
    "flat",
    [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}, {"": 1, "a": 2}, {"a//b": 1}, {"a/": 1}, {"/a": 1}],
)
def test_from_paths_refuses_paths_through_leaves(flat):
    with pytest.raises(errors.ParamsError, match="^from_paths: expected"):
        tree.from_paths(flat)


def test_a_leaf_that_is_a_dict_is_not_entered():
    with pytest.raises(errors.ParamsError):
        tree.from_paths({"a": {"c": 1}, "a/b": 2})


def test_two_leaves_at_one_path():
    with pytest.raises(errors.ParamsError, match="two at a/b"):
        tree.to_paths({"a/b": 1, "a": {"b": 2}})


# --- selection


@given(DICTS, st.text("ab1_*?/", min_size=1, max_size=6))
def test_select_is_a_glob_over_whole_paths(nested, pattern):
    wanted = {path: leaf for path, leaf in walk(nested) if glob(pattern).fullmatch(path)}
    if wanted:
        assert list(tree.select(nested, pattern).items()) == list(wanted.items())
        return
    with pytest.raises(errors.ParamsError):
        tree.select(nested, pattern)


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (["*/kernel"], [2, 4]),
        (["*/conv1/kernel"], [2]),
        (["conv1/*"], [3, 4]),
        (["*"], [0, 1, 2, 3, 4]),
        (["*/bias", "*/scale"], [0, 1, 3]),
        (["conv1/kernel", "*/kernel"], [2, 4]),
        (["conv[1]/bias"], [3]),
    ],
)
def test_patterns(patterns, wanted):
    wanted = [PATHS[i] for i in wanted]
    assert list(tree.select(PARAMS, *patterns)) == wanted
    chosen, rest = tree.split(PARAMS, *patterns)
    assert tree.paths(chosen) == tuple(wanted)
    assert tree.paths(rest) == tuple(path for path in PATHS if path not in wanted)
    assert tree.select(tree.mask(PARAMS, *patterns), "*") == {p: p in wanted for p in PATHS}


@given(DICTS, st.sets(st.integers(0, 20)))
def test_merge_undoes_split(nested, picks):
    patterns = [path for i, (path, _) in enumerate(walk(nested)) if i in picks]
    if not patterns:
        return
    chosen, rest = tree.split(nested, *patterns)
    assert dict(walk(chosen)).keys() == set(patterns) or not walk(chosen)
    assert not {p for p, _ in walk(chosen)} & {p for p, leaf in walk(rest) if rest}
    assert tree.merge(chosen, rest) == nested == tree.merge(rest, chosen)


def test_split_differentiates_a_part_under_jit():
    chosen, rest = tree.split(PARAMS, "conv1/*")

    @jax.jit
    def gradient(part, rest):
        def loss(part):
            params = tree.merge(part, rest)
            return sum(jnp.sum(jnp.float32(leaf) ** 2) for leaf in jax.tree.leaves(params))

        return jax.grad(loss)(part)

    got = gradient(chosen, rest)
    assert tree.paths(got) == ("conv1/bias", "conv1/kernel")
    np.testing.assert_array_equal(got["conv1"]["kernel"], 2 * PARAMS["conv1"]["kernel"])


def test_stop_gradient_stops_the_gradient_of_the_selected_alone():
    def loss(params):
        params = tree.stop_gradient(params, "block/*")
        return sum(jnp.sum(jnp.float32(leaf) ** 2) for leaf in jax.tree.leaves(params))

    grads = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, PARAMS))
    assert jax.tree.structure(grads) == jax.tree.structure(PARAMS)
    for path, grad in tree.to_paths(grads).items():
        value = np.float32(tree.to_paths(PARAMS)[path])
        np.testing.assert_array_equal(grad, 0 * value if path.startswith("block/") else 2 * value)


def test_mask_drives_optax():
    params = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    tx = optax.masked(optax.scale(0.0), tree.mask(params, "*/kernel"))
    updates, _ = tx.update(params, tx.init(params))
    assert jax.tree.map(lambda a: float(a[0]), updates) == {"a": {"kernel": 0.0, "bias": 1.0}}


def test_count_and_nbytes():
    sizes = {path: (leaf.size, leaf.nbytes) for path, leaf in walk(PARAMS)}
    assert tree.count(PARAMS) == sum(n for n, _ in sizes.values())
    assert tree.nbytes(PARAMS) == sum(n for _, n in sizes.values())
    assert tree.count(PARAMS, "block/bn/*") == 4 and tree.nbytes(PARAMS, "block/bn/*") == 12
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), PARAMS)
    assert tree.count(structs) == tree.count(PARAMS) and tree.count({}) == 0
    counts = []
    jax.eval_shape(lambda params: counts.append(tree.count(params)), PARAMS)
    assert counts == [tree.count(PARAMS)]


# --- surgery


def test_update_by_pattern_and_by_dict():
    new = tree.update(PARAMS, "conv1/bias", np.ones(2, np.float32))
    np.testing.assert_array_equal(new["conv1"]["bias"], [1, 1])
    np.testing.assert_array_equal(PARAMS["conv1"]["bias"], [0, 0])  # the old tree is as it was
    assert new["block"]["bn"]["scale"] is PARAMS["block"]["bn"]["scale"]
    new = tree.update(PARAMS, {"*/kernel": lambda k: 3 * k, "conv1/bias": lambda b: b - 1})
    np.testing.assert_array_equal(new["conv1"]["kernel"], 3 * PARAMS["conv1"]["kernel"])
    np.testing.assert_array_equal(new["block"]["conv1"]["kernel"], np.full((3, 3, 2, 2), 3))
    np.testing.assert_array_equal(new["conv1"]["bias"], [-1, -1])
    other = tree.update(PARAMS, "conv1/bias", np.ones(7), strict=False)
    assert other["conv1"]["bias"].shape == (7,)
    pair = tree.update((jnp.ones(2), jnp.ones(3)), "1", jnp.zeros(3))
    assert isinstance(pair, tuple) and float(pair[1][0]) == 0 and float(pair[0][0]) == 1


def test_update_under_jit_equals_eager():
    def scaled(params, by):
        return tree.update(params, "*/kernel", lambda kernel: by * kernel)

    eager = scaled(PARAMS, np.float32(2))
    assert not tree.compare(jax.jit(scaled)(PARAMS, np.float32(2)), eager)


# --- comparison


def test_equal_trees_do_not_differ():
    found = tree.compare(PARAMS, jax.tree.map(jnp.asarray, PARAMS))
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


# --- what is said of wrong inputs

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
    with pytest.raises(fnn.FnnError) as caught:
        call()
    error = caught.value
    assert_teaches(error, where)
    assert said in str(error) and len(str(error)) < 400


@given(DICTS, st.text("ab1_*?/[]", max_size=5))
def test_no_pattern_gives_another_error(nested, pattern):
    for call in (tree.select, tree.split, tree.mask, tree.stop_gradient, tree.count):
        try:
            call(jax.tree.map(np.float32, nested), pattern)
        except fnn.FnnError as error:
            assert str(error).startswith(call.__name__)
