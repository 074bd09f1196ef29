"""A sweep is its runs, one by one, however they are made."""

import dataclasses
import functools
import itertools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.search import executor, store

KEYS = jax.random.split(jax.random.key(0), 3)
RATES, POWERS = np.float32([0.5, 2.0]), [1.0, 2.0, 3.0]


def run_fn(key, rate, power, shift=0.0):
    noise = jax.random.normal(key, (4,))
    return {"loss": jnp.sum(noise * rate**power) + shift, "curve": noise * rate}


def expected(rate, power, seed, shift=0.0):
    noise = np.asarray(jax.random.normal(KEYS[seed], (4,)))
    return noise.sum() * rate**power + shift, noise * rate


def check(found, powers=POWERS):
    combinations = itertools.product(enumerate(RATES), enumerate(powers), range(3))
    losses, curves = (found.grid(found.results[name]) for name in ("loss", "curve"))
    assert losses.shape == (2, len(powers), 3) and curves.shape == (2, len(powers), 3, 4)
    for (i, rate), (j, power), seed in combinations:
        loss, curve = expected(rate, power, seed)
        np.testing.assert_allclose(losses[i, j, seed], loss, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(curves[i, j, seed], curve, rtol=1e-6)


def swept(run_fn=run_fn, **options):
    grid = {"rate": RATES, "power": POWERS}
    grid |= {name: options.pop(name) for name in tuple(options) if name in grid}
    return fnn.search.sweep(run_fn, grid, **{"keys": KEYS, "progress": False} | options)


def on_cores(n, monkeypatch):
    """As on a CPU of so many cores, and not as eight devices."""
    monkeypatch.setattr(executor, "_cores", lambda: n)
    monkeypatch.setattr(jax, "devices", lambda: [None])


def on_host(fn, number, vmap_method="sequential"):
    """A function of NumPy in a run: float32 [] -> float32 []."""
    like = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.pure_callback(fn, like, number, vmap_method=vmap_method)


@pytest.mark.parametrize("strategy", ["auto", "vmap", "map", "loop"])
@pytest.mark.parametrize("static", [(), ("power",)])
def test_every_run_is_the_function_of_its_settings(strategy, static):
    found = swept(strategy=strategy, static=static)
    check(found)
    assert len(found.strategy) == (3 if static else 1)
    wanted = {"vmap", "loop"} if strategy == "auto" else {strategy}
    assert set(found.strategy.values()) <= wanted


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_auto_tries_both_ways(chunk, monkeypatch):
    monkeypatch.setattr(executor, "PATIENCE", 0.0)
    compiled, program = set(), executor.Executor._program
    monkeypatch.setattr(
        executor.Executor, "_program", lambda self, way: compiled.add(way) or program(self, way)
    )
    check(swept(chunk=chunk))
    assert compiled == ({"loop"} if chunk == 1 else {"loop", "vmap"})


@pytest.mark.cpu
@pytest.mark.parametrize("together, wanted", [(1, "vmap"), (20, "loop")])
def test_auto_goes_on_with_what_is_faster(together, wanted, monkeypatch):
    """Runs that wait: of several side by side either all as long as one, or much longer."""

    def wait(rate):
        time.sleep(0.02 * (1 if rate.ndim == 0 else together))
        return rate

    def run_fn(key, rate):
        return on_host(wait, rate, "expand_dims")

    monkeypatch.setattr(executor, "PATIENCE", 0.0)
    monkeypatch.setattr(executor, "_cores", lambda: 1)
    rates = np.arange(32, dtype=np.float32)
    found = fnn.search.sweep(run_fn, {"rate": rates}, keys=KEYS[:1], progress=False)
    assert found.strategy == {(): wanted}
    np.testing.assert_array_equal(found.results, rates)


def test_a_short_sweep_is_compiled_once(monkeypatch):
    """What the runs that are left take is less than what another program would."""
    monkeypatch.setattr(
        executor.Executor, "_vmap_size", lambda self: pytest.fail("tried side by side")
    )
    monkeypatch.setattr(executor, "PATIENCE", 1e6)
    found = swept()
    check(found)
    assert found.strategy == {(): "loop"}


@pytest.mark.cpu
@pytest.mark.parametrize("strategy", ["loop", "map", "vmap"])
def test_cores_make_runs_at_once(strategy, monkeypatch):
    """Each call waits for another one, so that one at a time would never end."""
    both = threading.Barrier(2, timeout=20)

    def meet(rate):
        both.wait()
        return rate

    def run_fn(key, rate):
        return on_host(meet, rate, "expand_dims")

    on_cores(2, monkeypatch)
    rates = np.arange(8, dtype=np.float32)
    found = fnn.search.sweep(
        run_fn, {"rate": rates}, keys=KEYS[:1], strategy=strategy, progress=False
    )
    np.testing.assert_array_equal(found.results, rates)


@pytest.mark.cpu
def test_memory_bounds_how_many_run_at_once(monkeypatch):
    """What one run takes alone is all that there is."""
    running, most = [0], [0]

    def note(number):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        running[0] -= 1
        return number

    def run_fn(key, rate):
        big = jnp.sort(jnp.arange(2.0**16) * rate)
        return big[0] + on_host(note, rate)

    on_cores(4, monkeypatch)
    grid = {"rate": np.arange(8.0)}
    options = {"grid": grid, "keys": KEYS[:1], "strategy": "loop", "progress": False}
    fnn.search.sweep(run_fn, memory=2.0**18, **options)
    assert most == [1]
    fnn.search.sweep(run_fn, memory=2.0**24, **options)
    assert most[0] > 1


def test_a_run_a_call_is_the_run_to_the_last_bit(monkeypatch):
    on_cores(3, monkeypatch)
    found = swept(strategy="loop")
    alone = jax.jit(run_fn)
    wanted = [alone(key, a, b) for a in RATES for b in np.float32(POWERS) for key in KEYS]
    wanted = jax.tree.map(lambda *leaves: np.stack(leaves), *wanted)
    jax.tree.map(np.testing.assert_array_equal, found.results, wanted)


@pytest.mark.parametrize("chunk", [1, 2, 5, 18, 100])
def test_chunks_of_any_size_are_the_whole(chunk):
    check(swept(strategy="vmap", chunk=chunk))


def test_a_small_memory_makes_small_chunks():
    check(swept(strategy="vmap", memory=1.0))


def test_settings_stand_beside_their_results():
    found = swept(static=["power"])
    for row in range(18):
        rate, power, seed = (found.settings[name][row] for name in ("rate", "power", "seed"))
        loss, _ = expected(rate, power, seed)
        np.testing.assert_allclose(found.results["loss"][row], loss, rtol=1e-5, atol=1e-6)
    assert list(found.rows()) == ["rate", "power", "seed", "loss"]


def test_functions_and_words_are_static_by_themselves():
    def run_fn(key, fn, word, rate):
        return fn(rate) * len(word)

    found = fnn.search.sweep(
        run_fn,
        {"fn": [jnp.sin, jnp.cos], "word": ["a", "bc"], "rate": RATES},
        keys=KEYS[:1],
        progress=False,
    )
    expected = [[[np.sin(r) * n for r in RATES] for n in (1, 2)] for _ in "s"]
    np.testing.assert_allclose(found.grid(found.results)[:1, ..., 0], expected, rtol=1e-6)
    np.testing.assert_allclose(found.grid(found.results)[1, 1, :, 0], 2 * np.cos(RATES), rtol=1e-6)
    assert set(found.strategy) == set(itertools.product(("sin", "cos"), ("a", "bc")))


def test_rows_of_an_array_are_lists_of_settings():
    pairs = np.float32([[0.5, 1.0], [2.0, 3.0]])
    found = fnn.search.sweep(
        lambda key, pair: run_fn(key, pair[0], pair[1]), {"pair": pairs}, keys=KEYS, progress=False
    )
    for row, (rate, power) in enumerate(pairs):
        for seed in range(3):
            loss = found.grid(found.results["loss"])[row, seed]
            np.testing.assert_allclose(loss, expected(rate, power, seed)[0], rtol=1e-5, atol=1e-6)


def test_a_run_that_breaks_leaves_the_others_alone():
    def run_fn(key, rate):
        return jnp.log(rate)

    found = fnn.search.sweep(
        run_fn, {"rate": np.float32([1, -1, 2])}, keys=KEYS[:1], strategy="vmap", progress=False
    )
    np.testing.assert_allclose(found.results, [0, np.nan, np.log(2)], rtol=1e-6)


@pytest.mark.cpu
@pytest.mark.parametrize(
    "points, seeds, share", [(13, 1, [2, 1]), (2, 3, [1, 1]), (5, 16, [5, 2]), (8, 2, [2, 1])]
)
def test_runs_are_shared_among_devices(monkeypatch, points, seeds, share):
    assert len(jax.devices()) == 8  # fake ones
    placed = []

    def run_fn(key, rate):
        return rate + 0 * jax.random.uniform(key)

    rates = np.arange(points, dtype=np.float32)
    keys = jax.random.split(jax.random.key(1), seeds)
    spread = executor._spread

    def watched(*inputs):
        inputs = spread(*inputs)
        placed.append([len(a.addressable_shards[0].data) for a in inputs])
        assert all(len(a.sharding.device_set) == 8 for a in inputs)
        return inputs

    monkeypatch.setattr(executor, "_spread", watched)
    found = fnn.search.sweep(run_fn, {"rate": rates}, keys=keys, strategy="vmap", progress=False)
    np.testing.assert_array_equal(found.grid(found.results), np.repeat(rates[:, None], seeds, 1))
    assert placed == 2 * [share]  # to compile, and to run


@pytest.mark.cpu
def test_what_the_key_decides_alone_is_computed_once_a_seed():
    """Seen by how often a call to the host is made, one for each lane of a batch."""
    drawn = []

    def note(number):
        drawn.append(number)
        return number

    def run_fn(key, rate):
        number = jax.random.bits(key, (), jnp.uint32)
        like = jax.ShapeDtypeStruct((), jnp.uint32)
        seen = jax.pure_callback(note, like, number, vmap_method="sequential")
        return rate * seen.astype(jnp.float32)

    rates = np.float32([1, 2, 3, 4])
    grid = {"rate": rates}
    options = {"grid": grid, "keys": KEYS, "strategy": "vmap", "progress": False}
    found = fnn.search.sweep(run_fn, memory=2.0**30, **options)
    bits = np.asarray([jax.random.bits(key, (), jnp.uint32) for key in KEYS])
    wanted = np.multiply.outer(rates, bits.astype(np.float32))
    np.testing.assert_allclose(found.grid(found.results), wanted, rtol=1e-6)
    assert len(jax.devices()) == 8 and set(map(int, drawn)) == set(map(int, bits))
    assert len(drawn) < len(rates) * len(KEYS)


def test_keys_are_no_results():
    with pytest.raises(errors.RandomKeyError, match="key_data"):
        fnn.search.sweep(lambda key: {"key": key}, keys=KEYS, progress=False)


# --- on disk


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


def test_checks_for_nan_hold_in_a_sweep(monkeypatch):
    on_cores(2, monkeypatch)
    with jax.debug_nans(True), pytest.raises(Exception, match="nan"):
        fnn.search.sweep(
            lambda key, a: jnp.log(a - 3), {"a": np.arange(6.0)}, keys=KEYS[:1], progress=False
        )


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


# --- how it is shown


def test_the_table_shows_the_best_first():
    found = swept(run_fn=lambda key, rate, power: {"loss": rate * power})
    table = found.table()
    columns = [list(column.cells) for column in table.columns]
    assert [column.header for column in table.columns][:3] == ["rate", "power", "loss, median"]
    assert columns[2] == ["0.5", "1", "1.5", "2", "4", "6"]
    assert found.table(best="high", limit=1).row_count == 1


def test_a_frame_holds_every_run():
    pandas = pytest.importorskip("pandas")
    frame = swept().frame()
    assert isinstance(frame, pandas.DataFrame) and frame.shape == (18, 4)


# --- a real run


def test_seeds_and_rates_of_a_network():
    data = fnn.data.load("digits", "train")
    data = {"image": data["image"][:256].astype(np.float32) / 255, "label": data["label"][:256]}
    net = fnn.serial(fnn.flatten(3), fnn.dense(10))

    def run_fn(key, rate):
        tx = fnn.optim.adam(rate)
        loss = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy)
        ts = fnn.train.init(net, tx, key, data["image"][:1])
        _, history = fnn.train.run(fnn.train.step(loss, tx), ts, data, steps=40, batch_size=64)
        return history["train"]["loss"]

    found = fnn.search.sweep(
        run_fn, {"rate": np.geomspace(1e-4, 1e-1, 4)}, keys=KEYS, progress=False
    )
    last = found.grid(found.results)[..., -1]
    assert last.shape == (4, 3) and (last[3] < last[0]).all()


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"keys": jax.random.key(0)}, errors.RandomKeyError, "split"),
        ({"keys": 3}, errors.RandomKeyError, "split"),
        ({"rate": 0.1}, errors.OptionError, "values of rate"),
        ({"rate": []}, errors.OptionError, "at least one"),
        ({"static": ["width"]}, errors.OptionError, "width"),
        ({"strategy": "fast"}, errors.OptionError, "strategy"),
        ({"chunk": 0}, errors.OptionError, "chunk"),
    ],
)
def test_wrong_inputs_are_refused(options, kind, text):
    with pytest.raises(kind, match=text):
        swept(**options)


def test_results_of_other_shapes_are_refused():
    with pytest.raises(errors.ShapeError, match="as in the first run"):
        fnn.search.sweep(
            lambda key, n: jnp.zeros(n), {"n": [2, 3]}, keys=KEYS, static=["n"], progress=False
        )


# --- what once went wrong


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


def test_other_generators_draw_what_a_run_alone_draws():
    def run_fn(key, a):
        return a * jax.random.uniform(key)

    keys = jax.random.split(jax.random.key(0, impl="rbg"), 4)
    found = fnn.search.sweep(run_fn, {"a": RATES}, keys=keys, progress=False)
    wanted = [[run_fn(key, a) for key in keys] for a in RATES]
    np.testing.assert_allclose(found.grid(found.results), wanted, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["auto", "vmap", "map", "loop"])
def test_results_of_no_size(strategy):
    found = fnn.search.sweep(
        lambda key: jnp.zeros((3, 0)), keys=KEYS, strategy=strategy, progress=False
    )
    assert found.results.shape == (3, 3, 0)


def test_the_names_of_what_is_kept_are_checked(tmp_path):
    options = dict(keys=KEYS, directory=tmp_path, progress=False)
    fnn.search.sweep(lambda key: {"acc": 1.0, "loss": 2.0}, **options)
    with pytest.raises(errors.InputError, match="one directory per run_fn"):
        fnn.search.sweep(lambda key: {"loss": 2.0, "zacc": 1.0}, **options)


def test_narrow_floats_are_traced():
    found = fnn.search.sweep(
        lambda key, a: a * 2,
        {"a": jnp.arange(3, dtype=jnp.bfloat16)},
        keys=KEYS[:1],
        progress=False,
    )
    assert len(found.strategy) == 1 and found.results.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.results.astype(np.float32), [0, 2, 4])


def test_points_are_shown_by_their_numbers():
    pairs = np.float32([[1, 2], [3, 4]])
    found = fnn.search.sweep(lambda key, p: p.sum(), {"p": pairs}, keys=KEYS[:1], progress=False)
    assert found.rows()["p"].tolist() == ["[1.0, 2.0]", "[3.0, 4.0]"]


@pytest.mark.cpu
def test_one_chunk_is_made_once(monkeypatch):
    """Where nothing is left to decide by it, nothing is timed again."""
    made = []
    on_cores(2, monkeypatch)

    def run_fn(key, a):
        jax.debug.callback(lambda a: made.append(a), a)
        return a

    fnn.search.sweep(run_fn, {"a": RATES}, keys=KEYS[:1], progress=False)
    jax.effects_barrier()
    assert len(made) == 2
