"""However the runs of a sweep are computed, they are the runs one by one."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.search import executor
from tests.search.support import KEYS, POWERS, RATES, check, on_cores, on_host, run_fn, swept


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


def test_checks_for_nan_hold_in_a_sweep(monkeypatch):
    on_cores(2, monkeypatch)
    with jax.debug_nans(True), pytest.raises(Exception, match="nan"):
        fnn.search.sweep(
            lambda key, a: jnp.log(a - 3), {"a": np.arange(6.0)}, keys=KEYS[:1], progress=False
        )


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
