"""Batches against plain NumPy, and an order that is the same for ever."""

import functools
import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import errors
from fnn.data import batches, eval_batches, permutation, split, stream

seeds = st.integers(0, 2**32 - 1)
keys = seeds.map(lambda seed: jax.random.key(np.uint32(seed)))
sizes = st.sampled_from([1, 2, 3, 10, 64])


@given(key=keys, epoch=seeds, n=sizes)
def test_permutation_is_a_permutation_and_pure(key, epoch, n):
    order = permutation(key, epoch, n)
    assert order.dtype == jnp.int32
    assert sorted(order.tolist()) == list(range(n))
    # The documented formula, step by step, and with the key in its older form.
    direct = jax.random.permutation(jax.random.fold_in(key, np.uint32(epoch)), n)
    raw = jax.random.key_data(key)
    assert order.tolist() == direct.tolist() == permutation(raw, epoch, n).tolist()


@given(seed=seeds, epoch=seeds, other=seeds)
def test_permutation_differs_between_epochs_and_keys(seed, epoch, other):
    key, another = (jax.random.key(np.uint32(s)) for s in (seed, other))
    order = permutation(key, epoch, 64).tolist()
    if other != epoch:
        assert order != permutation(key, other, 64).tolist()
    if other != seed:
        assert order != permutation(another, epoch, 64).tolist()


jitted = jax.jit(permutation, static_argnums=2)


@given(key=keys, epoch=seeds, n=sizes)
def test_permutation_is_equal_inside_jit(key, epoch, n):
    assert jitted(key, np.uint32(epoch), n).tolist() == permutation(key, epoch, n).tolist()


def test_permutation_is_equal_inside_scan_and_vmap():
    key = jax.random.key(7)
    host = [permutation(key, epoch, 10).tolist() for epoch in range(4)]
    _, inside = jax.lax.scan(lambda c, e: (c, permutation(key, e, 10)), None, jnp.arange(4))
    assert inside.tolist() == host
    keys = jax.vmap(jax.random.key)(jnp.arange(9))
    assert jax.vmap(lambda k: permutation(k, 3, 10))(keys)[7].tolist() == host[3]


def threefry(seed):
    return jax.random.key(np.uint32(seed), impl="threefry2x32")


def pinned_orders():
    orders = [
        np.asarray(permutation(threefry(s), e, 60_000)).astype("<i4")
        for s, e in [(0, 0), (7, 3), (2**32 - 1, 2**32 - 1)]
    ]
    digests = [hashlib.sha256(order.tobytes()).hexdigest()[:16] for order in orders]
    return digests, permutation(threefry(7), 3, 10).tolist()


def test_permutation_is_the_same_for_ever():
    expected = (
        ["1ed5ffac290e95b2", "c2f2c5c32b8a3173", "0478a750da1c748f"],
        [2, 0, 1, 4, 7, 9, 3, 8, 5, 6],
    )
    assert pinned_orders() == expected
    for setting in (
        jax.enable_x64(True),
        jax.default_prng_impl("rbg"),
        jax.numpy_dtype_promotion("strict"),
    ):
        with setting:
            assert pinned_orders() == expected
            assert permutation(threefry(0), 0, 3).dtype == jnp.int32


def test_permutation_refuses_what_has_no_fixed_meaning():
    key = jax.random.key(0)
    for epoch in (-1, 0.5, None, jnp.float32(1)):
        with pytest.raises(errors.OptionError, match="permutation: expected epoch to be an int"):
            permutation(key, epoch, 3)
    with pytest.raises(errors.OptionError, match=r"expected epoch below 2\*\*32, got 4294967296"):
        permutation(key, 2**32, 3)
    with pytest.raises(errors.OptionError, match="expected n to be an int of at least 0, got -1"):
        permutation(key, 0, -1)
    for wrong in (jax.random.split(key), 0, 0.5, None, jnp.zeros(3, np.uint32)):
        with pytest.raises(errors.RandomKeyError, match="permutation: expected a key"):
            permutation(wrong, 0, 3)
    with pytest.raises(errors.RandomKeyError, match="expected a key"):
        jax.jit(lambda s: permutation(s, 0, 3))(0.5)


def tree(n):
    """A tree of arrays with n examples each: of several ranks, dtypes and kinds."""
    x = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)
    return {"x": x, "y": (np.arange(n), jnp.arange(n, dtype=jnp.float32) * 0.5)}


def rows(data, index):
    """Plain NumPy: the rows of a `tree`, one by one."""
    leaves = [data["x"], *data["y"]]
    x, a, b = (np.stack([np.asarray(leaf)[int(i)] for i in index]) for leaf in leaves)
    return {"x": x, "y": (a, b)}


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(a))


@given(n=sizes, size=st.integers(1, 64), key=keys, epoch=seeds)
def test_batches_equal_plain_numpy(n, size, key, epoch):
    data = tree(n)
    if size > n:
        want = f"batches: expected batch_size of at most the {n} examples, got {size};"
        with pytest.raises(errors.OptionError, match=want):
            batches(data, size, key=key, epoch=epoch)
        return
    got = list(batches(data, size, key=key, epoch=epoch))
    order = np.asarray(permutation(key, epoch, n))
    assert len(got) == n // size
    for i, batch in enumerate(got):
        assert_equal(batch, rows(data, order[i * size : (i + 1) * size]))
    seen = np.concatenate([batch["y"][0] for batch in got])
    assert len(set(seen.tolist())) == len(seen)  # no example twice


@given(n=st.integers(0, 40), size=st.integers(1, 50))
def test_eval_batches_equal_plain_numpy(n, size):
    data = tree(n)
    got = list(eval_batches(data, size))
    assert len(got) == -(-n // size)
    kept = []
    for i, (batch, mask) in enumerate(got):
        index = [min(j, n - 1) for j in range(i * size, (i + 1) * size)]
        assert_equal(batch, rows(data, index))
        assert mask.dtype == np.bool_ and mask.tolist() == [
            j < n for j in range(i * size, (i + 1) * size)
        ]
        kept += batch["y"][0][mask].tolist()
    assert kept == list(range(n))  # every example once, in order


def test_epochs_differ_and_the_default_is_epoch_0():
    key = jax.random.key(5)
    first, second = (next(batches(np.arange(9), 9, key=key, epoch=e)).tolist() for e in (0, 1))
    assert first != second
    assert first == next(batches(np.arange(9), 9, key=key)).tolist()
    assert first == permutation(key, 0, 9).tolist()


def test_batches_are_copies():
    data = np.arange(4)
    for batch in batches(data, 2, key=jax.random.key(0)):
        batch[:] = -1
    assert data.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "function", [functools.partial(batches, key=jax.random.key(0)), eval_batches]
)
def test_data_that_does_not_fit_is_refused_at_the_call(function):
    for data, shown in (
        ({"x": np.zeros((5, 2)), "y": np.zeros(4)}, r"{x: \(5, 2\) float64, y: \(4,\) float64}"),
        ((np.zeros(5), np.float32(1)), r"\(\(5,\) float64, \(\) float32\)"),
        ({"x": None}, "{x: None}"),
    ):
        with pytest.raises(errors.ShapeError, match=f"one leading axis .*, got {shown}"):
            function(data, 2)
    for size in (0, 2.0):
        with pytest.raises(errors.OptionError, match="batch_size to be an int of at least 1, got"):
            function(np.zeros(5), size)


def test_files_and_tables_are_not_one_array(tmp_path):
    pd = pytest.importorskip("pandas")
    np.savez(tmp_path / "data.npz", x=np.arange(2), y=np.arange(2))
    key, frame = jax.random.key(0), pd.DataFrame({"x": [1, 2], "y": [0.5, 1]})
    functions = (
        functools.partial(batches, key=key), eval_batches, functools.partial(stream, key=None),
        lambda data, n: split(data, {"a": n}, key),
    )  # fmt: skip
    with np.load(tmp_path / "data.npz") as file:
        for function in functions:
            for data in (file, {"a": file}, frame, {"a": frame}):
                with pytest.raises(
                    errors.InputError, match=r"got a .*; .*(dict\(file\)|from_frame)"
                ):
                    function(data, 2)
            assert function(dict(file), 2)


def test_evaluation_compiles_once():
    traces = itertools.count()

    @jax.jit
    def masked_sum(batch, mask):
        next(traces)
        return jnp.sum(jnp.where(mask, batch, 0))

    total = sum(int(masked_sum(b, m)) for b, m in eval_batches(np.arange(10), 4))
    assert total == 45 and next(traces) == 1
