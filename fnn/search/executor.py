"""The runs of one program, every point with every key: in chunks, by one of three strategies."""

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
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from fnn.core import errors
from fnn.core.dtypes import is_key
from fnn.core.types import Tree
from fnn.search.store import Finished, Group, Store

RUNS_PER_CALL = 4  # of "map"
CACHE = 2**22  # bytes per core of a CPU; runs side by side that need more are slower
PARTS = 4  # on CPU, "auto" tries at most a fourth of all runs side by side
PATIENCE = 2.0  # "auto" tries it if the rest, one run per call, takes this times the compile time
AHEAD = 8  # calls queued per worker, so that none waits
SHORT = 0.1  # seconds; shorter trials are timed three times, since the first call is slower
TIMES = 3

Chunk: TypeAlias = tuple[np.ndarray, np.ndarray]  # numbers of points, and of keys for each of them


class Program(NamedTuple):
    """(points [P], keys [K]) -> results [P, K, ...]."""

    call: Callable[..., Tree]
    bytes: int  # needed while it runs, as the compiler estimates them
    seconds: float  # of compiling


class Executor:
    """Computes the runs of a group.

    Side by side, what depends on a key alone is computed once. On CPU, as many programs run at once
    as there are cores, because a small network keeps only one core busy; but not on several (fake)
    devices, where programs that wait for each other's shards could deadlock.
    """

    def __init__(
        self,
        run_fn: Callable[..., Tree],
        group: Group,
        strategy: str,
        most: int | None,
        memory: float,
        store: Store,
    ):
        self.run_fn, self.group, self.store = run_fn, group, store
        self.strategy = "loop" if group.rows.size == 1 else strategy
        if strategy == "auto" and str(jax.random.key_impl(group.keys)) != "threefry2x32":
            self.strategy = "loop"  # other generators draw other numbers under vmap
        self.on_cpu = jax.default_backend() == "cpu"
        self.workers = _cores() if self.on_cpu and len(jax.devices()) == 1 and not _checks() else 1
        self.most, self.memory = most, memory
        self.sizes: dict[str, tuple[int, int]] = {}
        self.programs: dict[str, Program] = {}
        self.seconds: dict[str, float] = {}  # per run in a trial, by strategy
        self.done = np.zeros(group.rows.size, bool)
        self.lock = threading.Lock()  # for `done` and the store

    def chunks(self) -> Generator[Finished, None, None]:
        """All runs: those on disk, then the others as they finish, in any order."""
        self.done[:] = False
        for made in self.store.kept(self.one):
            runs, result = self._new(*made)
            yield self.group.rows.flat[runs], result
        if self.done.all():
            self.strategy = "kept"
        try:
            while not self.done.all():
                some = self._trial() if self.strategy == "auto" else self._rest()
                with contextlib.closing(some):
                    for runs, result in some:
                        yield self.group.rows.flat[runs], result
        finally:  # also after an error or an interruption
            self.store.write()

    def one(self, point: ArrayLike, key: ArrayLike) -> Tree:
        """The run at the point and with the key of these numbers."""
        settings = {name: jnp.asarray(v)[point] for name, v in self.group.points.items()}
        result = self.run_fn(self.group.keys[key], **settings, **self.group.fixed)
        for leaf in jax.tree.leaves(result):
            if is_key(leaf):
                mend = "return their jax.random.key_data"
                raise errors.RandomKeyError("results that are numbers", "typed keys", mend)
        return result

    # --- which runs share a call

    def _chunks_left(self, strategy: str) -> Iterator[Chunk]:
        """The chunks with runs that are not done."""
        points, keys = self.group.rows.shape
        todo, (p, k) = ~self.done.reshape(points, keys), self._size(strategy)
        for i, j in itertools.product(range(0, points, p), range(0, keys, k)):
            if todo[i : i + p, j : j + k].any():
                yield np.arange(i, min(i + p, points)), np.arange(j, min(j + k, keys))

    def _size(self, strategy: str) -> tuple[int, int]:
        """The numbers of points and of keys per call: all points come before a second key."""
        if strategy not in self.sizes:
            sizes = {"loop": lambda: (1, 1), "map": self._map_size, "vmap": self._vmap_size}
            self.sizes[strategy] = sizes[strategy]()
        return self.sizes[strategy]

    def _map_size(self) -> tuple[int, int]:
        """Divisors of the totals, so that no run is computed twice."""
        points, keys = self.group.rows.shape
        share = -(-self.group.rows.size // self.workers)
        most = self.most or min(RUNS_PER_CALL, share)
        points = _divisor(points, most)
        return points, _divisor(keys, most // points)

    def _vmap_size(self) -> tuple[int, int]:
        """As many as fit, in chunks of one size; several devices get equally many each."""
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

    # --- how they are computed

    def _trial(self) -> Generator[Finished, None, None]:
        """One call per worker, of one run, then of many side by side; then the faster is chosen."""
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

    def _rest(self) -> Generator[Finished, None, None]:
        """All runs that are not done, by the strategy that is decided."""
        return self._made(self.strategy, self._chunks_left(self.strategy))

    def _made(self, strategy: str, chunks: Iterable[Chunk]) -> Generator[Finished, None, None]:
        """The runs of the chunks as they finish; each is in the store by then."""
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

    def _make(self, strategy: str, call: Callable[..., Tree], chunk: Chunk) -> Finished:
        """One call: the new runs of a chunk, [runs, ...] in NumPy."""
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

    def _new(self, runs: np.ndarray, result: Tree) -> Finished:
        """Those of these runs that were not done before; marks them as done."""
        new = ~self.done[runs]
        self.done[runs] = True
        return runs[new], jax.tree.map(lambda a: a[new], result)

    def _inputs(self, strategy: str, chunk: Chunk) -> tuple[Any, Any]:
        """The inputs of a program; a chunk that is not full repeats its last point or key."""
        points, keys = (
            np.pad(numbers, (0, size - len(numbers)), mode="edge").astype(np.int32)
            for numbers, size in zip(chunk, self._size(strategy), strict=True)
        )
        return _spread(points, keys) if strategy == "vmap" else (points, keys)

    def _program(self, strategy: str) -> Program:
        """The program of a strategy, compiled before it is timed."""
        if strategy not in self.programs:
            fn = {"loop": _alone, "map": _in_turn, "vmap": _side_by_side}[strategy](self.one)
            inputs = self._inputs(strategy, (np.arange(1), np.arange(1)))
            begin = time.perf_counter()
            # Shardings go to the program and not to its arrays: runs may have a mesh of their own.
            shardings, plain = _shardings(inputs), map(_struct, inputs)
            call = jax.jit(fn, **shardings).lower(*plain).compile()
            seconds, need = time.perf_counter() - begin, call.memory_analysis()
            takes = need.temp_size_in_bytes + need.output_size_in_bytes if need else 0
            self.programs[strategy] = Program(call, takes, seconds)
        return self.programs[strategy]


# --- the strategies: (points [P], keys [K]) -> results [P, K, ...] of one(point, key)


def _side_by_side(one: Callable) -> Callable:
    """Two nested maps, not one over pairs: what depends on the key alone is not repeated."""
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
    """The size of equal parts of n, at most `most`, with a number of parts that workers divide."""
    rounds = -(-n // (most * workers))
    return -(-n // (rounds * workers))


def _shares(points: int, keys: int) -> tuple[int, int]:
    """All devices as a grid over points and keys that minimizes the most runs on any device."""
    devices = len(jax.devices())
    grids = [(a, devices // a) for a in range(1, devices + 1) if devices % a == 0]
    return min(grids, key=lambda grid: -(-points // grid[0]) * -(-keys // grid[1]))


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


def _shardings(inputs: tuple[Any, Any]) -> dict[str, Any]:
    """Those of a program for these inputs, whose results are [P, K, ...]."""
    points, keys = (getattr(a, "sharding", None) for a in inputs)
    if points is None or keys is None:
        return {}
    results = NamedSharding(points.mesh, PartitionSpec(*points.spec, *keys.spec))
    return {"in_shardings": (points, keys), "out_shardings": results}


def _struct(a: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _checks() -> bool:
    """Whether JAX checks for NaN or infinity, which may be set for this thread alone."""
    return any(getattr(jax.config, f"jax_debug_{kind}") for kind in ("nans", "infs"))


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
