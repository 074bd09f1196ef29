"""Results on disk are read again, and not taken for those of other runs."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.search import store
from tests.search.support import (
    KEYS,
    RATES,
    check,
    expected,
    on_cores,
    on_host,
    swept,
)


def test_what_is_kept_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "EVERY", 0.0)
    first = swept(strategy="vmap", chunk=8, directory=tmp_path)
    check(first)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3 and all(file.suffix == ".npz" for file in files)
    with np.load(files[0]) as file:
        kept = dict(file)
    kept["arr_1"] = kept["arr_1"] + 100  # to see that it is read
    np.savez(files[0], **kept)
    again = swept(strategy="vmap", chunk=8, directory=tmp_path)
    moved = again.results["loss"] - first.results["loss"] > 99
    np.testing.assert_array_equal(np.flatnonzero(moved), kept["rows"])
    for file in files:
        file.unlink()
    check(swept(strategy="vmap", chunk=8, directory=tmp_path))


def test_only_what_is_missing_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "EVERY", 0.0)
    made = []

    def run_fn(key, a):
        jax.debug.callback(lambda a: made.append(float(a)), a)
        return a

    def again():
        made.clear()
        found = fnn.search.sweep(
            run_fn,
            {"a": np.arange(6.0)},
            keys=KEYS[:1],
            strategy="loop",
            directory=tmp_path,
            progress=False,
        )
        jax.effects_barrier()
        np.testing.assert_array_equal(found.results, np.arange(6.0))
        return sorted(made)

    assert again() == [0, 1, 2, 3, 4, 5] and again() == []
    for path in tmp_path.iterdir():
        with np.load(path) as file:
            missing = file["rows"].tolist() == [3]
        if missing:
            path.unlink()
    assert again() == [3]


def test_an_error_stops_the_rest_and_loses_nothing(tmp_path, monkeypatch):
    """On two cores a run breaks while another one goes on: that one, and all before, are kept."""
    on_cores(2, monkeypatch)
    made, broken = [], [True]

    def work(number):
        if number == 5 and broken:
            raise ValueError("this run breaks")
        time.sleep(0.1 if number == 4 else 0.01)
        made.append(int(number))
        return np.float32(number)

    def run_fn(key, number):
        return on_host(work, number)

    def again():
        numbers = np.arange(200.0)
        return fnn.search.sweep(
            run_fn,
            {"number": numbers},
            keys=KEYS[:1],
            strategy="loop",
            directory=tmp_path,
            progress=False,
        )

    with pytest.raises(jax.errors.JaxRuntimeError, match="this run breaks"):
        again()
    first = sorted(made)
    assert {0, 1, 2, 3, 4} <= set(first) and len(first) < 150
    made.clear(), broken.clear()
    np.testing.assert_array_equal(again().results, np.arange(200))
    assert sorted(first + made) == list(range(200))


def test_long_runs_are_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "EVERY", 0.05)
    there = []

    def work(number):
        there.append(len(list(tmp_path.iterdir())))
        time.sleep(0.06)
        return number

    def run_fn(key, number):
        return on_host(work, number)

    options = {"keys": KEYS[:1], "directory": tmp_path, "strategy": "loop", "progress": False}
    fnn.search.sweep(run_fn, {"number": np.arange(4.0)}, **options)
    assert there == [0, 1, 2, 3]


@pytest.mark.parametrize("then", [{}, {"chunk": 4}, {"strategy": "loop"}, {"chunk": 100}])
def test_an_interrupted_sweep_goes_on(monkeypatch, tmp_path, then):
    """In other chunks too: what is done is neither made again nor shown as made."""
    kept, keep = [], store.Store.keep

    def stopping(self, rows, result, seconds):
        if len(kept) > 7:
            raise KeyboardInterrupt
        keep(self, rows, result, seconds)
        kept.extend(rows)

    options = {"strategy": "vmap", "chunk": 7, "directory": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "keep", stopping)
        with pytest.raises(KeyboardInterrupt):
            swept(**options)
    assert len(list(tmp_path.iterdir())) == 1  # of both chunks that were made
    fresh = []
    monkeypatch.setattr(store.Store, "keep", lambda self, rows, *_: fresh.extend(rows))
    check(swept(**options | then))
    assert sorted(kept + fresh) == list(range(18)) and 0 < len(kept) < 18


def test_a_damaged_file_is_refused(tmp_path):
    swept(strategy="vmap", directory=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(errors.InputError, match=f"{path}.*its runs are computed again"):
        swept(strategy="vmap", directory=tmp_path)
    path.unlink()
    check(swept(strategy="vmap", directory=tmp_path))


def test_other_settings_are_not_taken_for_the_same(tmp_path):
    check(swept(strategy="vmap", directory=tmp_path))
    other = swept(strategy="vmap", directory=tmp_path, rate=RATES + 1)
    loss = expected(RATES[1] + 1, 2, 0)[0]
    np.testing.assert_allclose(other.grid(other.results["loss"])[1, 1, 0], loss, rtol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        [0.12341, 0.12344],
        [lambda: 1.0, lambda: 10.0],
        ["1", 1],
        [np.zeros(2000), np.arange(2000) == 1000],
    ],
)
def test_settings_that_look_alike_keep_their_own_results(values, tmp_path):
    def run_fn(key, setting):
        return jnp.float32(setting() if callable(setting) else np.sum(np.float32(setting)))

    grid = {"setting": values}
    options = dict(grid=grid, keys=KEYS[:1], static=["setting"], progress=False)
    for _ in range(2):  # made, then read
        found = fnn.search.sweep(run_fn, directory=tmp_path, **options)
        wanted = [run_fn(None, value) for value in values]
        np.testing.assert_array_equal(found.results, wanted)
        assert len(found.strategy) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_objects_are_found_again_by_another_process(tmp_path):
    """Their names hold no address."""
    make = lambda: [fnn.optim.adam(0.1), fnn.optim.adam(0.2)]  # noqa: E731

    def sweep(run_fn):
        fnn.search.sweep(run_fn, {"tx": make()}, keys=KEYS[:1], directory=tmp_path, progress=False)

    def never(key, tx):
        assert isinstance(key, jax.core.Tracer)
        return jnp.float32(0)

    sweep(lambda key, tx: jnp.float32(1))
    before = sorted(path.name for path in tmp_path.iterdir())
    sweep(never)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_narrow_floats_come_back_from_disk(tmp_path):
    options = dict(grid={"rate": RATES}, keys=KEYS, directory=tmp_path, progress=False)
    for _ in range(2):
        found = fnn.search.sweep(lambda key, rate: rate.astype(jnp.bfloat16), **options)
        assert found.results.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found.grid(found.results)[:, 0].astype(np.float32), RATES)


def test_another_generators_keys_are_other_runs(tmp_path):
    def run_fn(key):
        return jax.random.uniform(key)

    drawn = []
    for impl in ("rbg", "unsafe_rbg"):
        keys = jax.random.wrap_key_data(np.ones((1, 4), np.uint32), impl=impl)
        found = fnn.search.sweep(run_fn, keys=keys, directory=tmp_path, progress=False)
        drawn.append(found.results)
        np.testing.assert_array_equal(found.results[0], run_fn(keys[0]))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_would_be_cast_is_refused(tmp_path):
    def run_fn(key, kind):
        return jnp.ones((), kind)

    options = dict(keys=KEYS[:1], progress=False)
    with pytest.raises(errors.DtypeError, match="int32"):
        fnn.search.sweep(run_fn, {"kind": ["int32", "float32"]}, **options)
    with pytest.raises(errors.OptionError, match="integers of int32"):
        fnn.search.sweep(run_fn, {"kind": [2**40, 1]}, **options)
    fnn.search.sweep(lambda key: 1.0 * key.size, directory=tmp_path, **options)
    for other in (lambda key: jnp.ones(3), lambda key: 1, lambda key: (1.0, 2.0)):
        with pytest.raises(errors.InputError, match="one directory per run_fn"):
            fnn.search.sweep(other, directory=tmp_path, **options)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    a: int


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ([(32, 32), (64, 64)], [(128, 128), (256, 256)]),
        ([(32,), (64, 64)], [(1,), (2, 2)]),
        ([functools.partial(pow, 2)], [functools.partial(pow, 3)]),
        ([np.arange(3)], [np.arange(3) + 1]),
        ([{"a": 1}], [{"a": 2}]),
        ([{(0, 1): 1}], [{(0, 1): 2}]),
        ([jnp.arange(3)], [jnp.arange(3) + 1]),
        ([np.array([1, (2, 3)], object)], [np.array([1, (2, 4)], object)]),
        ([Slotted(1)], [Slotted(2)]),
        ([1], ["1"]),
        ([1, 2], [2, 1]),
    ],
)
def test_other_static_values_are_other_runs(first, then, tmp_path):
    def number(value):
        if callable(value):
            return value(2)
        if isinstance(value, Slotted):
            return value.a
        if isinstance(value, np.ndarray) and value.dtype.kind == "O":
            value = value.tolist()
        return len(value) if isinstance(value, str) else sum(10 * v for v in leaves(value))

    def leaves(value):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(value)])

    for values in (first, then, first):
        found = fnn.search.sweep(
            lambda key, value: jnp.float32(number(value)),
            {"value": values},
            keys=KEYS[:2],
            static=["value"],
            directory=tmp_path,
            progress=False,
        )
        wanted = np.repeat([number(value) for value in values], 2)
        np.testing.assert_array_equal(found.results, wanted)
    assert set(found.strategy.values()) == {"kept"}


def test_labels_are_told_apart(tmp_path):
    values = ["1", 1, "1 1"]
    found = fnn.search.sweep(
        lambda key, a: jnp.float32(10 * len(str(a)) + isinstance(a, int)),
        {"a": values},
        keys=KEYS[:1],
        static=["a"],
        directory=tmp_path,
        progress=False,
    )
    np.testing.assert_array_equal(found.results, [10, 11, 30])
    assert len(found.strategy) == 3


def test_the_names_of_what_is_kept_are_checked(tmp_path):
    options = dict(keys=KEYS, directory=tmp_path, progress=False)
    fnn.search.sweep(lambda key: {"acc": 1.0, "loss": 2.0}, **options)
    with pytest.raises(errors.InputError, match="one directory per run_fn"):
        fnn.search.sweep(lambda key: {"loss": 2.0, "zacc": 1.0}, **options)
