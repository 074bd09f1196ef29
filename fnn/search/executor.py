"""The runs of one program, every point with every key: made in chunks, in one of three ways."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn.core import errors
from fnn.search.store import Finished, Group, Store

RUNS_PER_CALL = 4  # runs of "map" in a call
CACHE = 2**22  # bytes; what stands side by side on a core of a CPU, and takes more, is slower
PARTS = 4  # on CPU at most a fourth of all runs are tried side by side
PATIENCE = 2.0  # and if the others, a run a call, would take longer than compiling did, times this
AHEAD = 8  # calls that wait for each worker, so that it never waits itself
SHORT = 0.1  # seconds; what takes less is timed three times, for the first call is slower
TIMES = 3

Chunk = tuple[np.ndarray, np.ndarray]  # the numbers of some points, and of the keys for each


class Program(NamedTuple):
    """(points [P], keys [K]) -> results [P, K, ...]."""

    call: Callable[..., Any]
    bytes: int  # that it takes while it runs, as the compiler estimates it
    seconds: float  # that it took to compile


class Executor:
    """How the runs of a group are made.

    Side by side, what a key alone decides is computed once. On CPU as many programs run at once as
    there are cores, because a small network keeps but one busy; not on several (fake) devices,
    where programs that wait for each other's parts could do so for ever.
    """

    def __init__(
        self,
        run_fn: Callable[..., Any],
        group: Group,
        strategy: str,
        most: int | None,
        memory: float,
        store: Store,
    ):
        self.run_fn, self.group, self.store = run_fn, group, store
        self.strategy = "loop" if group.rows.size == 1 else strategy
        if strategy == "auto" and str(jax.random.key_impl(group.keys)) != "threefry2x32":
            self.strategy = "loop"  # other generators draw other numbers side by side
        self.on_cpu = jax.default_backend() == "cpu"
        self.workers = _cores() if self.on_cpu and len(jax.devices()) == 1 and not _checks() else 1
        self.most, self.memory = most, memory
        self.sizes: dict[str, tuple[int, int]] = {}
        self.programs: dict[str, Program] = {}
        self.seconds: dict[str, float] = {}  # that a run took in a trial, by strategy
        self.done = np.zeros(group.rows.size, bool)
        self.lock = threading.Lock()  # for what is done, and the store

    def chunks(self) -> Generator[Finished, None, None]:
        """All runs: those on disk, and then the others as they are made, in any order."""
        self.done[:] = False
        for made in self.store.kept(self.one):
            runs, result = self._new(*made)
            yield self.group.rows.flat[runs], result
        if self.done.all():
            self.strategy = "kept"
        try:
            while not self.done.all():
                way = self.strategy
                some = self._trial() if way == "auto" else self._made(way, self._chunks_left(way))
                with contextlib.closing(some):
                    for runs, result in some:
                        yield self.group.rows.flat[runs], result
        finally:  # of an error or an interruption too
            self.store.write()

    def one(self, point: Any, key: Any) -> Any:
        """The run at the point of this number, with the key of this number."""
        settings = {name: jnp.asarray(v)[point] for name, v in self.group.points.items()}
        result = self.run_fn(self.group.keys[key], **settings, **self.group.fixed)
        for leaf in jax.tree.leaves(result):
            if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                mend = "return jax.random.key_data of them"
                raise errors.RandomKeyError("results that are numbers", "typed keys", mend)
        return result

    # --- which runs are made together

    def _chunks_left(self, strategy: str) -> Iterator[Chunk]:
        """The chunks that hold what is not done."""
        points, keys = self.group.rows.shape
        todo, (p, k) = ~self.done.reshape(points, keys), self._size(strategy)
        for i, j in itertools.product(range(0, points, p), range(0, keys, k)):
            if todo[i : i + p, j : j + k].any():
                yield np.arange(i, min(i + p, points)), np.arange(j, min(j + k, keys))

    def _size(self, strategy: str) -> tuple[int, int]:
        """How many points, and keys of each, in a call: all points come before a second key."""
        if strategy not in self.sizes:
            size = {
                "loop": lambda: (1, 1),
                "map": self._map_size,
                "vmap": self._vmap_size,
            }[strategy]
            self.sizes[strategy] = size()
        return self.sizes[strategy]

    def _map_size(self) -> tuple[int, int]:
        """As many as divide all, so that none is made twice."""
        points, keys = self.group.rows.shape
        share = -(-self.group.rows.size // self.workers)
        most = self.most or min(RUNS_PER_CALL, share)
        points = _divisor(points, most)
        return points, _divisor(keys, most // points)

    def _vmap_size(self) -> tuple[int, int]:
        """As many as fit, in chunks of one size; of several devices each has as many."""
        most, total = self.most, self.group.rows.size
        if most is None:
            each, space = self._program("loop").bytes, self.memory / self.workers
            space = min(space, CACHE) if self.on_cpu else space
            most = total if total * each <= space else int(space // each)
        if self.most is None or self.strategy == "auto":
            parts = self.workers * (PARTS if self.on_cpu and self.strategy == "auto" else 1)
            most = min(most, -(-total // parts))
        points, keys = self.group.rows.shape
        if most < points:
            points, keys = _even(points, max(1, most), self.workers), 1
        else:
            keys = _even(keys, most // points, self.workers)
        if points * keys == 1:
            return 1, 1
        a, b = _shares(points, keys)
        return -(-points // a) * a, -(-keys // b) * b

    # --- how they are made

    def _trial(self) -> Generator[Finished, None, None]:
        """A call a worker: of a run each, then of many side by side; at the end, what is faster."""
        strategy = "vmap" if self.seconds else "loop"
        compiling = self._program(strategy).seconds
        chunks = list(itertools.islice(self._chunks_left(strategy), self.workers))
        runs = sum(len(points) * len(keys) for points, keys in chunks)
        left, times = int((~self.done).sum()) - runs, []
        while not times or (left > 0 and max(times) < SHORT and len(times) < TIMES):
            begin = time.perf_counter()
            made = list(self._made(strategy, chunks))
            times.append(time.perf_counter() - begin)
            yield from made
        self.seconds[strategy] = min(times) / runs
        rest = left * self.seconds["loop"]
        decided = strategy == "vmap" or rest < PATIENCE * compiling
        if decided or self._size("vmap") == (1, 1):
            self.strategy = min(self.seconds, key=lambda strategy: self.seconds[strategy])

    def _made(self, strategy: str, chunks: Iterable[Chunk]) -> Generator[Finished, None, None]:
        """Every point of each chunk with every key, as they are done, and kept by then."""
        program, chunks = self._program(strategy), iter(chunks)
        workers = self.workers
        if workers * program.bytes > self.memory:
            workers = max(1, int(self.memory // program.bytes))
        make = functools.partial(self._make, strategy, program.call)
        if workers == 1:
            yield from map(make, chunks)
            return
        pool, finished, waiting = ThreadPoolExecutor(workers), queue.SimpleQueue(), 0
        try:
            while True:
                for chunk in itertools.islice(chunks, AHEAD * workers - waiting):
                    pool.submit(make, chunk).add_done_callback(finished.put)
                    waiting += 1
                if not waiting:
                    break
                waiting -= 1
                yield finished.get().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, strategy: str, call: Callable[..., Any], chunk: Chunk) -> Finished:
        """One call: of the runs of a chunk those that are new, [runs, ...] in NumPy."""
        p, k = len(chunk[0]), len(chunk[1])

        def rows(a):  # [P, K, ...]
            return np.asarray(a)[:p, :k].reshape(p * k, *a.shape[2:])

        begin = time.perf_counter()
        result = jax.tree.map(rows, call(*self._inputs(strategy, chunk)))
        seconds = time.perf_counter() - begin
        runs = np.add.outer(chunk[0] * self.group.rows.shape[1], chunk[1]).reshape(-1)
        with self.lock:
            runs, result = self._new(runs, result)
            self.store.keep(runs, result, seconds)
        return runs, result

    def _new(self, runs: np.ndarray, result: Any) -> Finished:
        """Of the runs of these numbers those that were not done before, and are from now on."""
        new = ~self.done[runs]
        self.done[runs] = True
        return runs[new], jax.tree.map(lambda a: a[new], result)

    def _inputs(self, strategy: str, chunk: Chunk) -> tuple[Any, Any]:
        """What a program takes: the last ones again where a chunk is not full."""
        points, keys = (
            np.pad(numbers, (0, size - len(numbers)), mode="edge").astype(np.int32)
            for numbers, size in zip(chunk, self._size(strategy), strict=True)
        )
        return _spread(points, keys) if strategy == "vmap" else (points, keys)

    def _program(self, strategy: str) -> Program:
        """The one of a strategy, compiled ahead of its timing."""
        if strategy not in self.programs:
            fn = {"loop": _alone, "map": _in_turn, "vmap": _side_by_side}[strategy](self.one)
            inputs = self._inputs(strategy, (np.arange(1), np.arange(1)))
            begin = time.perf_counter()
            call = jax.jit(fn).lower(*inputs).compile()
            seconds, need = time.perf_counter() - begin, call.memory_analysis()
            takes = need.temp_size_in_bytes + need.output_size_in_bytes if need else 0
            self.programs[strategy] = Program(call, takes, seconds)
        return self.programs[strategy]


# --- the strategies, (points [P], keys [K]) -> results [P, K, ...] of one(point, key)


def _side_by_side(one: Callable) -> Callable:
    """Mapped twice, not once over the pairs: so what follows from the key alone is not repeated."""
    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))


def _in_turn(one: Callable) -> Callable:
    def of_point(point, keys):
        return jax.lax.map(functools.partial(one, point), keys)

    return lambda points, keys: jax.lax.map(lambda point: of_point(point, keys), points)


def _alone(one: Callable) -> Callable:
    return lambda points, keys: jax.tree.map(
        lambda a: jnp.asarray(a)[None, None], one(points[0], keys[0])
    )


def _divisor(n: int, most: int) -> int:
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


def _even(n: int, most: int, workers: int) -> int:
    """The size of n things in parts of one size, of at most so many; a part for every worker."""
    rounds = -(-n // (most * workers))
    return -(-n // (rounds * workers))


def _shares(points: int, keys: int) -> tuple[int, int]:
    """All devices as a grid over points and keys, by which the fullest has the fewest runs."""
    devices = len(jax.devices())
    ways = [(a, devices // a) for a in range(1, devices + 1) if devices % a == 0]
    return min(ways, key=lambda way: -(-points // way[0]) * -(-keys // way[1]))


def _spread(points: np.ndarray, keys: np.ndarray) -> tuple[Any, Any]:
    """The runs shared among all devices, if there are several."""
    a, b = _shares(len(points), len(keys))
    if len(points) % a or len(keys) % b or a * b == 1:
        return points, keys
    mesh = Mesh(np.array(jax.devices()).reshape(a, b), ("points", "keys"))
    return (
        jax.device_put(points, NamedSharding(mesh, PartitionSpec("points"))),
        jax.device_put(keys, NamedSharding(mesh, PartitionSpec("keys"))),
    )


def _checks() -> bool:
    """Whether JAX looks for NaN or infinity, which may be a setting of this thread alone."""
    return any(getattr(jax.config, f"jax_debug_{kind}") for kind in ("nans", "infs"))


def _cores() -> int:
    """How many of them this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
