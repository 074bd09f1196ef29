"""Patterns against regular expressions; parts of a tree taken out and put back."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import errors, tree
from tests.support import asarray
from tests.tree.support import DICTS, PARAMS, walk

PATHS = (
    "block/bn/bias",
    "block/bn/scale",
    "block/conv1/kernel",
    "conv1/bias",
    "conv1/kernel",
)


def glob(pattern):
    """A shell glob without brackets as a regular expression."""
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts), re.DOTALL)


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

    grads = jax.jit(jax.grad(loss))(jax.tree.map(asarray, PARAMS))
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
