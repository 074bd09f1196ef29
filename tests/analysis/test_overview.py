"""Overviews of trees: their numbers are NumPy's, and their HTML is well formed."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding, PartitionSpec

import fnn
from fnn import errors
from fnn.analysis import overview
from tests.parsed_html import Parsed

HOSTILE = "<script>alert('\"&')</script>"


def only(a):
    (leaf,) = overview({"a": a}).leaves
    return leaf


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "bool", "complex64"])
def test_numbers_are_those_of_numpy(dtype):
    a = (np.random.default_rng(0).normal(size=(7, 30)) * 3).astype(jnp.dtype(dtype))
    leaf, wide = only(jnp.asarray(a)), a.astype("complex128" if dtype == "complex64" else float)
    assert leaf.shape == a.shape and leaf.dtype == dtype and leaf.count == 210
    assert leaf.nbytes == a.nbytes and not leaf.wrong
    np.testing.assert_allclose(leaf.norm, np.linalg.norm(wide), 1e-12)
    np.testing.assert_allclose(leaf.mean, wide.mean(), 1e-12)
    np.testing.assert_allclose(leaf.std, wide.std(), 1e-12)
    shown = np.abs(wide) if dtype == "complex64" else wide
    assert (leaf.low, leaf.high) == (shown.min(), shown.max())
    counts = np.histogram(shown / np.abs(shown).max(), 20)[0]
    assert leaf.histogram == tuple(counts)


@given(hnp.arrays(np.float64, st.integers(0, 9), elements=st.floats(width=64)))
@settings(max_examples=60, deadline=None)
def test_any_floats_are_described(a):
    leaf, good = only(a), a[np.isfinite(a)].astype(np.longdouble)
    assert (leaf.nans, leaf.infs) == (np.isnan(a).sum(), np.isinf(a).sum())
    assert sum(leaf.histogram) == good.size and (leaf.norm is None) == (good.size == 0)
    if good.size:
        with np.errstate(over="ignore"):  # two of the largest floats have a norm of inf
            norm = float(np.sqrt((good**2).sum()))
        np.testing.assert_allclose(leaf.norm, norm, 1e-9)
        np.testing.assert_allclose(leaf.mean, float(good.mean()), 1e-9, 1e-12 * abs(good).max())
        np.testing.assert_allclose(leaf.std, float(good.std()), 1e-6, 1e-12 * abs(good).max())
    Parsed(overview({"a": a})._repr_html_())


Pair = namedtuple("Pair", "left right")


def test_a_tree_of_everything_is_shown():
    devices = np.array(jax.devices()[:2])
    place = NamedSharding(jax.sharding.Mesh(devices, ("x",)), PartitionSpec("x"))
    tree = {
        HOSTILE: jnp.ones(3, jnp.bfloat16), "pair": Pair(jax.random.key(0), (2.5, True)),
        "empty": jnp.zeros((0, 3)), "nothing": None, "text": HOSTILE, "old": np.array(["<b>"]),
        "spread": jax.device_put(jnp.arange(4.0), place), "like": jax.ShapeDtypeStruct((5,), int),
    }  # fmt: skip
    found = overview(tree)
    by_path = {"/".join(leaf.path): leaf for leaf in found.leaves}
    assert set(by_path) == {HOSTILE, "pair/left", "pair/right/0", "pair/right/1", "empty", "text",
                            "old", "spread", "like"}  # fmt: skip
    assert by_path["pair/left"].note == "random key" and by_path["like"].note == "no values"
    assert by_path["empty"].norm is None and by_path["text"].dtype == "str"
    assert by_path["spread"].mean == 1.5
    assert by_path["spread"].note == (f"on {len(devices)} devices" if len(devices) > 1 else "")
    html = Parsed(found._repr_html_())
    assert HOSTILE in html.texts and {"left", "right", "spread"} < set(html.texts)
    assert HOSTILE in repr(found) and "random key" in repr(found)
    assert jax.jit(lambda a: a * overview(a).count)(jnp.ones(3)).tolist() == [3, 3, 3]


def test_values_that_are_not_finite_are_red_and_shown_first():
    tree = {f"layer{i:03}": {"w": np.ones(2)} for i in range(400)}
    tree["layer123"]["w"] = np.array([np.nan, 1.0, np.inf, -np.inf])
    found = overview(tree, limit=7)
    assert [leaf.path[0] for leaf in found.wrong] == ["layer123"]
    html = Parsed(found._repr_html_())
    red = [text for text in html.texts if text in ("1 NaN, 2 inf", "1 leaf not finite")]
    assert red.count("1 NaN, 2 inf") == 1 and len(red) == 3  # at the leaf, its layer and the tree
    assert sum("#e5484d" in dict(attrs).get("style", "") for _, attrs in html.tags) == 3
    assert "… and 393 more leaves" in html.texts and html.count("svg") == 7
    assert "… and 393 more leaves" in repr(found) and "1 NaN, 2 inf" in repr(found)
    assert len(repr(found).splitlines()) == 10


def test_output_is_bounded_for_ten_thousand_leaves():
    found = overview([np.zeros(1, np.float32)] * 10_000)
    assert len(found._repr_html_()) < 300_000 and found.count == 10_000
    assert "10,000 leaves, 10,000 values, 39.1 KiB" in repr(found)


def test_empty_trees_single_arrays_and_declarations():
    assert repr(overview({})) == "0 leaves, 0 values, 0 B"
    assert "0 leaves" in Parsed(overview({})._repr_html_()).texts[0]
    assert overview(jnp.ones(3)).leaves[0].path == ()
    Parsed(overview(jnp.ones(3))._repr_html_())
    net = fnn.serial(fnn.weight_norm(fnn.dense(3)), fnn.repeat(fnn.dense(3), 2))
    declared, arrays = (
        net.specs((1, 4))[0],
        jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 4)))[0],
    )
    declared, drawn = overview(declared), overview(jax.tree.map(jnp.zeros_like, arrays))
    assert [leaf[:5] for leaf in declared.leaves] == [leaf[:5] for leaf in drawn.leaves]
    assert {leaf.note for leaf in declared.leaves} == {"kernel", "bias"}


def test_wrong_options_are_refused():
    with pytest.raises(errors.OptionError):
        overview({}, limit=-1)
