"""Streams against `fnn.data.batches`, whose order is theirs, and against plain NumPy."""

import gc
import itertools
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import errors
from fnn.data import batches, eval_batches, files, stream
from tests.data.support import Many, Recorded, Unreadable

KEY = jax.random.key(7)
sizes = st.sampled_from([1, 2, 3, 10, 64])


def tree(n):
    x = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)
    return {"x": x, "y": (np.arange(n), np.arange(n) * 0.5), "name": np.arange(n).astype(str)}


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def workers():
    ours = (t for t in threading.enumerate() if t.name.startswith("fnn.data.stream"))
    return [t for t in ours if t.is_alive()]


@given(n=sizes, size=st.integers(1, 20), seed=st.integers(0, 9), epoch=st.integers(0, 9),
       start=st.integers(0, 9), threads=st.sampled_from([0, 1, 3]))  # fmt: skip
def test_a_stream_has_the_batches_of_arrays(n, size, seed, epoch, start, threads):
    key, size = jax.random.key(seed), min(size, n)
    made = stream(tree(n), size, key, threads=threads, device=False)
    want = list(batches(tree(n), size, key=key, epoch=epoch))
    assert len(made) == len(want) and (made.batch_size, made.examples) == (size, n)
    got = list(made(epoch, start))
    assert len(got) == len(want[start:])
    for a, b in zip(got, want[start:], strict=True):
        assert_equal(a, b)


@given(n=sizes, size=st.integers(1, 20), start=st.integers(0, 3))
def test_in_order_and_filled_it_has_those_of_evaluation(n, size, start):
    made = stream(tree(n), size, None, last="fill", device=False)
    want = list(eval_batches(tree(n), size))
    assert len(made) == len(want)
    for a, b in zip(made(5, start), want[start:], strict=True):
        assert_equal(a, b)


def test_shuffled_and_filled_it_has_every_example_once():
    made = stream(np.arange(11), 4, KEY, last="fill", device=False)
    seen = [x for batch, mask in made(2) for x in batch[mask].tolist()]
    assert seen == np.asarray(jax.random.permutation(jax.random.fold_in(KEY, 2), 11)).tolist()


def test_a_step_has_its_batch_whatever_came_before():
    made = stream(np.arange(11), 4, KEY, device=False)
    flat = [batch.tolist() for epoch in range(4) for batch in made(epoch)]
    for step in (0, 1, 2, 5):
        some = itertools.islice(made.from_step(step), 3)
        assert [batch.tolist() for batch in some] == flat[step : step + 3]


@pytest.mark.parametrize("ahead", [2, None])  # by default one more than there are workers
def test_nothing_before_the_start_is_read_and_only_so_much_ahead(ahead):
    source = Recorded(40)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(KEY, 3), 40)).tolist()
    made = stream(source, 4, KEY, ahead=ahead, device=False)(3, 5)
    assert next(made)["x"].tolist() == order[20:24]
    while len(source.asked) < 12:  # the next to come, and two after it
        time.sleep(0.001)
    made.close()
    assert source.asked == order[20:32]
    for workers, most in (({"threads": 3}, 4), ({"processes": 2}, 3), ({"threads": 0}, 1)):
        assert stream(source, 4, KEY, **workers).ahead == most


def test_shards_are_the_parts_of_each_batch():
    whole = list(stream(np.arange(11), 4, KEY, last="fill", device=False)(1))
    made = (stream(np.arange(11), 4, KEY, last="fill", device=False, shard=(i, 2)) for i in (0, 1))
    parts = [list(part(1)) for part in made]
    for want, *some in zip(whole, *parts, strict=True):
        for i in (0, 1):  # the batch, the mask
            assert np.concatenate([part[i] for part in some]).tolist() == want[i].tolist()
            assert len(some[0][i]) == 2


def test_examples_are_transformed_and_stacked():
    def transform(example):
        return {"z": example["x"] * 2.0, "odd": bool(example["x"] % 2)}

    for source in (Recorded(9), Many(9), {"x": np.arange(9)}):
        (batch,) = stream(source, 9, None, transform=transform, device=False)(0)
        assert batch["z"].dtype == np.float32 and batch["odd"].dtype == bool
        assert batch["z"].tolist() == [2.0 * i for i in range(9)]
        assert batch["odd"].tolist() == [i % 2 == 1 for i in range(9)]


def test_batches_go_to_the_device():
    made = stream({"x": np.arange(16.0), "name": np.arange(16).astype(str)}, 8, KEY)
    batch = next(made(0))
    assert isinstance(batch["x"], jax.Array) and isinstance(batch["name"], np.ndarray)
    plain = next(batches(np.arange(16.0), 8, key=KEY))
    assert_equal(np.asarray(batch["x"]), plain)
    mesh = jax.make_mesh((8,), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed = next(stream(np.arange(16.0), 8, KEY, device=spread)(0))
    assert placed.sharding == spread
    assert_equal(np.asarray(placed), plain)


def test_a_source_that_gives_too_few_is_named():
    class Few(Many):
        def __getitems__(self, rows):
            return super().__getitems__([row for row in rows if row != 4])

    with pytest.raises(errors.DataError, match="example 4 to be read, got ValueError: 0 examples"):
        list(stream(Few(9), 3, None)(0))


@pytest.mark.parametrize("threads", [0, 2])
def test_an_example_that_cannot_be_read_is_named(threads):
    with pytest.raises(errors.DataError) as error:
        list(stream(Unreadable(9), 3, None, threads=threads)(0))
    message = "expected example 1 to be read, got KeyError: 'no record 1'; mend it, or leave it out"
    assert str(error.value) == f"stream: {message}"
    assert isinstance(error.value.__cause__, KeyError)
    assert not workers()
    with pytest.raises(errors.DataError, match="example 2 to be transformed, got ZeroDivisionErr"):
        list(stream([3, 1, 0], 3, None, transform=lambda x: 1 // x, threads=threads)(0))


def test_good_batches_come_before_a_bad_one():
    made = stream([1, 2, 3, 0], 2, None, transform=lambda x: 6 // x, threads=2, device=False)(0)
    assert next(made).tolist() == [6, 3]
    with pytest.raises(errors.DataError, match="example 3 to be transformed"):
        next(made)


def test_a_broken_file_is_named(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.zeros(3))
    (tmp_path / "1.npy").write_bytes(b"not an array")
    with pytest.raises(errors.DataError, match=rf"expected example 1 \({tmp_path}/1.npy\) to be r"):
        list(stream(files(tmp_path, np.load), 3, None)(0))


@pytest.mark.parametrize(
    ("source", "got"),
    [
        ([{"x": np.zeros(2)}, {"x": np.zeros(3)}], r"as example 0: {x: \(2,\).* got example 1: {x"),
        ([{"x": 1}, {"y": 1}], r"as example 0: {x: 1}, got example 1: {y: 1}"),
        ([{"x": 1}, {"x": 0.5}], r"as example 0: {x: 1}, got example 1: {x: 0.5}"),
        (["a", 1], r"as example 0: 'a', got example 1: 1"),
        ([np.zeros(2, "u1"), np.zeros(2, "f4")], r"\(2,\) uint8, got example 1: \(2,\) float32"),
    ],
)
def test_examples_that_do_not_stack_are_refused(source, got):
    with pytest.raises(errors.ShapeError, match=f"stream: expected examples of one .*{got}"):
        list(stream(source, 2, None)(0))


def test_values_that_no_dtype_holds_are_refused():
    with pytest.raises(errors.InputError, match="source/x that int32 holds"):
        list(stream({"x": np.array([1, 2**40])}, 2, None)(0))


def test_workers_end_with_their_iterator():
    made = stream(np.arange(40), 2, KEY, threads=3)
    unused, closed, dropped, run_out = (made(0) for _ in range(4))
    assert not workers()
    next(closed), next(dropped), list(run_out)
    assert workers()
    closed.close()
    del dropped, unused
    gc.collect()
    assert not workers()
    with pytest.raises(ZeroDivisionError):  # the loop's own error
        for _ in made(0):
            assert workers()
            raise ZeroDivisionError
    gc.collect()
    assert not workers()


def test_a_worker_may_collect_its_own_stream(monkeypatch):
    """As the last reference to it may be in a cycle, which is found on any thread."""
    ignored, go = [], threading.Event()
    monkeypatch.setattr("sys.unraisablehook", lambda error: ignored.append(error.exc_value))

    def transform(x):
        go.wait()
        gc.collect()
        return x

    gc.disable()
    try:
        made = stream(range(9), 1, None, transform=transform, threads=1, ahead=2, device=False)(0)
        threading.Timer(0.1, go.set).start()
        next(made)
        go.clear()
        cycle = [made]
        cycle.append(cycle)
        del made, cycle
        go.set()
        for worker in workers():
            worker.join(9)
    finally:
        gc.enable()
    assert not ignored and not workers()


@pytest.mark.parametrize(
    "options",
    [
        {"last": "pad"}, {"threads": -1}, {"processes": 0.5}, {"ahead": 0}, {"device": "cpu"},
        {"shard": (2, 2)}, {"shard": (0, 3)}, {"shard": 1}, {"transform": 3}, {"batch_size": 0},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(errors.OptionError, match=f"stream: expected {min(options)}[ =]"):
        stream(np.arange(8), key=None, **{"batch_size": 4} | options)


def test_a_key_and_a_place_are_checked():
    with pytest.raises(errors.RandomKeyError, match="stream: expected a key"):
        stream(np.arange(8), 4, 0)
    made = stream(np.arange(8), 4, KEY)
    for call in (lambda: made(-1), lambda: made(0, 0.5), lambda: made.from_step(-1)):
        with pytest.raises(errors.OptionError, match="stream: expected"):
            call()
